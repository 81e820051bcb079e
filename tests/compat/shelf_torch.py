"""Programs of torch's own larger parts: compilers, process groups, sharded parameters, checkpoints, workers."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
from shelf import Values, program
from shelf_science import WIDTH, fitted, perceptron
from torch import nn
from torch.nn import functional as F

from harness import Run


@contextlib.contextmanager
def group(run: Run) -> Iterator[None]:
    """A process group of one."""
    import torch.distributed as dist

    with tempfile.TemporaryDirectory() as folder:
        backend = "gloo" if run.device == "cpu" else "nccl"
        dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()


@program("torch", "torch.compile: kernels that the compiler made")
def compiled(run: Run) -> Values:
    model = perceptron(run)
    fast = torch.compile(model)
    return fitted(run, fast, torch.optim.SGD(model.parameters(), lr=0.01), steps=3)


@program("torch", "torch.export, and the exported program run")
def exported(run: Run) -> Values:
    model = perceptron(run).eval()
    x = torch.randn(8, WIDTH).to(run.device)
    made = torch.export.export(model, (x,)).module()
    run.between()
    with torch.no_grad():
        return {"exported": made(x), "eager": model(x)}


@program("torch", "a traced and a scripted module, saved and loaded")
def scripted(run: Run) -> Values:
    model = perceptron(run).eval()
    x = torch.randn(8, WIDTH).to(run.device)
    traced = torch.jit.trace(model, x)
    run.between()
    with tempfile.TemporaryDirectory() as folder:
        traced.save(f"{folder}/traced.pt")
        again = torch.jit.load(f"{folder}/traced.pt", map_location=run.device)
    with torch.no_grad():
        return {"traced": traced(x), "loaded": again(x), "scripted": torch.jit.script(model)(x)}


@program("torch", "a derivative for each example, and a whole Jacobian")
def functional_derivatives(run: Run) -> Values:
    from torch.func import functional_call, grad, jacrev, vmap

    model = perceptron(run, 64)
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    x = torch.randn(6, 64).to(run.device)

    def loss(values: dict[str, torch.Tensor], row: torch.Tensor) -> torch.Tensor:
        return functional_call(model, values, (row.unsqueeze(0),)).square().mean()

    each = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    run.between()
    return {"each": each, "jacobian": jacrev(lambda row: functional_call(model, parameters, (row,)))(x[0])}


@program("torch", "DistributedDataParallel")
def data_parallel(run: Run) -> Values:
    with group(run):
        model = nn.parallel.DistributedDataParallel(perceptron(run))
        return fitted(run, model, torch.optim.Adam(model.parameters(), lr=1e-3))


@program("torch", "fully_shard (FSDP2), its state saved and loaded in parts")
def fully_sharded(run: Run) -> Values:
    import torch.distributed.checkpoint as checkpoint
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    with group(run), tempfile.TemporaryDirectory() as folder:
        mesh = init_device_mesh(run.device, (1,))
        model = perceptron(run)
        for layer in model:
            if isinstance(layer, nn.Linear):
                fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        values = fitted(run, model, torch.optim.Adam(model.parameters(), lr=1e-3), steps=3)
        values["parameters"] = {name: whole(value) for name, value in model.named_parameters()}
        checkpoint.save({"model": get_model_state_dict(model)}, checkpoint_id=folder)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        run.between()
        state: dict[str, Any] = {"model": get_model_state_dict(model)}
        checkpoint.load(state, checkpoint_id=folder)
        set_model_state_dict(model, state["model"])
        values["loaded"] = {name: whole(value) for name, value in model.named_parameters()}
        return values


def whole(value: Any) -> torch.Tensor:
    """All of a tensor that may be spread over ranks."""
    return (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().clone()


@program("torch", "batches from worker processes")
def loader_workers(run: Run) -> Values:
    data = torch.utils.data.TensorDataset(torch.arange(64 * WIDTH, dtype=torch.float32).view(64, WIDTH))
    loader = torch.utils.data.DataLoader(data, batch_size=8, num_workers=2, multiprocessing_context="spawn")
    model, sums = perceptron(run), []
    with torch.no_grad():
        for (batch,) in loader:
            sums.append(model(batch.to(run.device)).sum())
            run.between()
    return {"sums": sums}


@program("torch", "averaged weights and a schedule beside them")
def averaged(run: Run) -> Values:
    from torch.optim.swa_utils import SWALR, AveragedModel

    model = perceptron(run)
    average = AveragedModel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    schedule = SWALR(optimizer, swa_lr=0.01)
    for _ in range(4):
        x = torch.randn(8, WIDTH).to(run.device)
        F.mse_loss(model(x), x).backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(model)
        schedule.step()
        run.between()
    return {"average": dict(average.named_parameters()), "model": dict(model.named_parameters())}


@program("torch", "attention by a rule that is compiled: flex_attention")
def flexible_attention(run: Run) -> Values:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def causal(batch: Any, head: Any, query: Any, key: Any) -> Any:
        return query >= key

    mask = create_block_mask(causal, None, None, 128, 128, device=run.device)
    values = {}
    with torch.no_grad():
        for turn in range(2):
            q, k, v = (torch.randn(1, 4, 128, 32).to(run.device) for _ in range(3))
            values[f"turn_{turn}"] = flex_attention(q, k, v, block_mask=mask)
            run.between()
    return values


@program("torch", "a state of the whole program, pickled by torch.save")
def saved_state(run: Run) -> Values:
    model = perceptron(run)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    first = fitted(run, model, optimizer, steps=2)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "state.pt")
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
        run.between()
        state = torch.load(path, map_location=run.device)
    again = perceptron(run)
    resumed = torch.optim.AdamW(again.parameters(), lr=1e-3)
    again.load_state_dict(state["model"])
    resumed.load_state_dict(state["optimizer"])
    return {"first": first["losses"], "second": fitted(run, again, resumed, steps=2)}
