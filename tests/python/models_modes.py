"""Programs about threads, saving and copying, modes of PyTorch, and autograd."""

from __future__ import annotations

import copy
import io
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from harness import Run
from models_base import WIDTH, Block, Transformer, Values, noise, program, state_of, tokens_on, train

# ---- threads, processes ----------------------------------------------------------------------------------------------


def in_threads(works: list[Callable[[], Any]]) -> list[Any]:
    results: list[Any] = [None] * len(works)
    errors: list[BaseException] = []

    def body(index: int) -> None:
        try:
            results[index] = works[index]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=body, args=(i,)) for i in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


@program
def threads_train_their_own(run: Run) -> Values:
    models = [nn.Sequential(nn.Linear(WIDTH, 128), nn.ReLU(), nn.Linear(128, WIDTH)).to(run.device) for _ in range(4)]
    inputs = [noise(run, 24, WIDTH) for _ in range(4)]

    def work(index: int) -> list[torch.Tensor]:
        optimizer = torch.optim.Adam(models[index].parameters(), lr=1e-3)
        losses = []
        for _ in range(6):
            optimizer.zero_grad()
            loss = F.mse_loss(models[index](inputs[index]), inputs[index])
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return losses

    run.between()
    losses = in_threads([lambda i=i: work(i) for i in range(4)])
    run.between()
    return {"losses": losses, "models": [state_of(model) for model in models]}


@program
def threads_share_inputs(run: Run) -> Values:
    shared = noise(run, 96, 96) / 10

    def work(index: int) -> torch.Tensor:
        x = torch.full((96, 96), float(index), device=run.device)
        for _ in range(25):
            x = torch.tanh(x @ shared + 0.1)
        return x

    return {"results": in_threads([lambda i=i: work(i) for i in range(4)]), "shared": shared}


@program
def backward_in_other_thread(run: Run) -> Values:
    model = Transformer(layers=1).to(run.device)
    losses = [model.loss(tokens_on(run)) for _ in range(3)]
    run.between()
    for loss in losses:
        in_threads([loss.backward])
        run.between()
    return {"losses": [loss.detach() for loss in losses], **state_of(model)}


class Rows(torch.utils.data.Dataset):
    def __init__(self) -> None:
        self.rows = torch.arange(40.0).repeat_interleave(32).view(40, 32).numpy().copy()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.rows[index]) * 2  # allocates in the worker


@program
def data_loader(run: Run) -> Values:
    """Workers are forked while tierpage is on; what they allocate is plain."""
    model = nn.Linear(32, 64).to(run.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    losses = []
    for workers in (0, 2):
        loader = torch.utils.data.DataLoader(
            Rows(), batch_size=8, num_workers=workers, shuffle=True, multiprocessing_context="fork" if workers else None
        )
        for batch in loader:
            optimizer.zero_grad()
            loss = model(batch.to(run.device)).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        run.between()
    return {"losses": losses, **state_of(model)}


# ---- saving, copying, modes ------------------------------------------------------------------------------------------


@program
def saved_and_loaded(run: Run) -> Values:
    model = Transformer(layers=1).to(run.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    first = train(run, model, optimizer, lambda _: model.loss(tokens_on(run)), 1)
    files = []
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        file = io.BytesIO()
        run.between()
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file, **options)
        files.append(file.getvalue())
    del first
    copied = copy.deepcopy(model)
    values: Values = {}
    for number, data in enumerate(files):
        run.between()
        loaded = torch.load(io.BytesIO(data), map_location=run.device, weights_only=True)
        other = Transformer(layers=1).to(run.device)
        other.load_state_dict(loaded["model"], assign=bool(number))
        other.head.weight = other.embedding.weight
        second = torch.optim.AdamW(other.parameters(), lr=1e-3)
        second.load_state_dict(loaded["optimizer"])
        torch.manual_seed(11)
        values[f"loaded{number}"] = train(run, other, second, lambda _, m=other: m.loss(tokens_on(run)), 2)
    torch.manual_seed(11)
    values["copied"] = train(
        run, copied, torch.optim.SGD(copied.parameters(), lr=0.1), lambda _: copied.loss(tokens_on(run)), 1
    )
    part = model.blocks[0].attention
    vector = nn.utils.parameters_to_vector(part.parameters())
    nn.utils.vector_to_parameters(vector * 2, part.parameters())
    return {**values, "vector": vector, **state_of(model)}


@program
def autocast_bfloat16(run: Run) -> Values:
    model = Transformer(dropout=0.1).to(run.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def loss_of(_: int) -> torch.Tensor:
        with torch.autocast(torch.device(run.device).type, dtype=torch.bfloat16):
            return model.loss(tokens_on(run))

    values = train(run, model, optimizer, loss_of)
    half = copy.deepcopy(model).bfloat16()
    with torch.inference_mode():
        values["half"] = half(tokens_on(run))
    return values


@program
def gradient_scaler(run: Run) -> Values:
    kind = torch.device(run.device).type
    model = nn.Sequential(nn.Linear(WIDTH, 128), nn.ReLU(), nn.Linear(128, 8)).to(run.device)
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler(kind, init_scale=2.0**10)
    for step in range(3):
        optimizer.zero_grad()
        loss = model(noise(run, 8, WIDTH) * (float("inf") if step == 1 else 1.0)).square().mean()
        scaler.scale(loss).backward()
        run.between()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    return {"scale": scaler.get_scale(), **state_of(model)}


@program
def function_transforms(run: Run) -> Values:
    from torch.func import functional_call, grad, hessian, jacrev, jvp, vmap

    model = nn.Sequential(nn.Linear(24, 64), nn.Tanh(), nn.Linear(64, 4)).to(run.device)
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(p: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return functional_call(model, p, (x,)).square().mean()

    x = noise(run, 6, 24)
    run.between()
    per_sample = vmap(grad(loss), (None, 0))(parameters, x)
    run.between()
    values, tangents = jvp(lambda x: model(x), (x,), (torch.ones_like(x),))
    return {
        "per_sample": per_sample, "values": values, "tangents": tangents, "jacobian": jacrev(model)(x[0]),
        "hessian": hessian(lambda v: model(v).sum())(x[0]), "random": vmap(lambda v: v + torch.rand_like(v), randomness="different")(x),
    }  # fmt: skip


@program
def compiled_eager_backend(run: Run) -> Values:
    torch.compiler.reset()
    model = Block().to(run.device)
    compiled = torch.compile(model, backend="aot_eager")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    x = noise(run, 2, 16, WIDTH)
    values = train(run, model, optimizer, lambda _: compiled(x).square().mean(), 2)
    torch.compiler.reset()
    return values


@program
def random_numbers(run: Run) -> Values:
    """The generator advances as without paging, also through views and out=."""
    x = noise(run, 64, 64)
    values: Values = {"dropout": [F.dropout(x), F.alpha_dropout(x), F.dropout2d(x[None, None])]}
    generator = torch.Generator(run.device).manual_seed(3)
    values["drawn"] = [
        torch.rand(50, 50, device=run.device),
        torch.randperm(500, device=run.device),
        torch.empty(70, 70, device=run.device).normal_(generator=generator),
    ]
    run.between()
    values["more"] = [
        x.bernoulli(0.3),
        torch.multinomial(x.abs(), 5),
        torch.poisson(x.abs()),
        F.gumbel_softmax(x),
        torch.normal(x, x.abs()),
    ]
    state = torch.get_rng_state()
    a = torch.rand(100)
    torch.set_rng_state(state)
    return {
        **values,
        "again": bool((a == torch.rand(100)).all()),
        "generator": generator.get_state(),
        "state": torch.get_rng_state(),
    }


# ---- autograd --------------------------------------------------------------------------------------------------------


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
        context.save_for_backward(x, by)
        context.mark_non_differentiable()
        return x * by

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, by = context.saved_tensors
        return gradient * by, (gradient * x).sum(0)


@program
def own_function_and_hooks(run: Run) -> Values:
    seen: list[torch.Tensor] = []
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)).to(run.device)
    model[0].register_forward_hook(lambda module, inputs, output: output * 1.5)
    model[0].register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))
    model[2].register_full_backward_hook(lambda module, before, after: (before[0] * 2,))
    model[0].weight.register_hook(lambda gradient: seen.append(gradient.clone()) or gradient * 0.5)
    by = noise(run, 64).requires_grad_()
    x = noise(run, 16, 64).requires_grad_()
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t.shape) or t * 1, lambda t: t):
        y = Scaled.apply(model(x), by)
    run.between()
    y.square().sum().backward(retain_graph=True)
    run.between()
    y.sum().backward()
    with torch.autograd.graph.save_on_cpu():
        z = model(x).exp().sum()
    run.between()
    return {
        "seen": seen,
        "by": by.grad,
        "x": x.grad,
        "z": torch.autograd.grad(z, x)[0],
        "packed": str(packed),
        **state_of(model),
    }


@program
def higher_derivatives(run: Run) -> Values:
    x = noise(run, 40, 40).requires_grad_()
    y = (x.sin() @ x.cos()).tanh().sum()
    (first,) = torch.autograd.grad(y, x, create_graph=True)
    run.between()
    (second,) = torch.autograd.grad(first.square().sum(), x, create_graph=True)
    run.between()
    (third,) = torch.autograd.grad(second.sum(), x)
    import torch.autograd.forward_ad as forward_ad

    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x.detach(), torch.ones_like(x))
        tangent = forward_ad.unpack_dual(dual.exp() * dual).tangent
    return {"first": first, "second": second, "third": third, "tangent": tangent}
