"""Programs that train: transformers, optimizers, and models of other kinds."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from harness import Run
from models_base import WIDTH, Transformer, Values, noise, program, state_of, tokens_on, train, train_transformer

# ---- transformers and optimizers -------------------------------------------------------------------------------------


@program
def transformer_adamw_foreach(run: Run) -> Values:
    return train_transformer(run, foreach=True)


@program
def transformer_adamw_fused(run: Run) -> Values:
    return train_transformer(run, fused=True)


@program
def transformer_adamw_single(run: Run) -> Values:
    return train_transformer(run, foreach=False, amsgrad=True)


@program
def transformer_sgd(run: Run) -> Values:
    return train_transformer(run, torch.optim.SGD, momentum=0.9, nesterov=True, weight_decay=0.1)


@program
def more_optimizers(run: Run) -> Values:
    kinds = [
        ("Adagrad", {}),
        ("RMSprop", {"momentum": 0.5}),
        ("Adamax", {}),
        ("NAdam", {}),
        ("RAdam", {}),
        ("Adadelta", {}),
        ("ASGD", {}),
        ("Rprop", {}),
    ]
    values = {}
    for name, options in kinds:
        for foreach in (True, False):
            torch.manual_seed(3)
            model = nn.Sequential(nn.Linear(WIDTH, 128), nn.Tanh(), nn.Linear(128, 8)).to(run.device)
            optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.01, foreach=foreach, **options)
            x = noise(run, 16, WIDTH)
            values[f"{name}{foreach}"] = train(
                run, model, optimizer, lambda _, x=x, m=model: m(x).square().mean(), 2, None
            )
    return values


@program
def lbfgs(run: Run) -> Values:
    model = nn.Linear(WIDTH, 64).to(run.device)
    x, y = noise(run, 32, WIDTH), noise(run, 32, 64)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        run.between()
        return loss

    losses = [optimizer.step(closure).detach() for _ in range(2)]
    return {"losses": losses, "weight": model.weight}


@program
def accumulation_clipping_average(run: Run) -> Values:
    model = Transformer(layers=1).to(run.device)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=4)
    norms = []
    for _ in range(3):
        for _ in range(2):
            (model.loss(tokens_on(run)) / 2).backward()
            run.between()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), 0.5))
        nn.utils.clip_grad_value_(model.parameters(), 0.01)
        optimizer.step()
        schedule.step()
        average.update_parameters(model)
        optimizer.zero_grad(set_to_none=False)
        run.between()
    return {
        "norms": norms,
        "average": dict(average.state_dict()),
        "rate": schedule.get_last_lr()[0],
        **state_of(model, optimizer),
    }


@program
def optimizer_in_gradient_hooks(run: Run) -> Values:
    model = Transformer(layers=1).to(run.device)
    optimizers = {p: torch.optim.Adam([p], lr=1e-3, foreach=False) for p in model.parameters()}

    def step(parameter: torch.Tensor) -> None:
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(step)
    losses = []
    for _ in range(3):
        loss = model.loss(tokens_on(run))
        loss.backward()
        losses.append(loss.detach())
        run.between()
    return {"losses": losses, **state_of(model)}


@program
def schedulers(run: Run) -> Values:
    model = nn.Linear(WIDTH, WIDTH).to(run.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=torch.tensor(0.1), foreach=False)
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer, [torch.optim.lr_scheduler.LinearLR(optimizer), torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)], [2]
    )  # fmt: skip
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(torch.optim.SGD(model.parameters(), lr=0.5), patience=0)
    rates = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = model(noise(run, 8, WIDTH)).square().mean()
        loss.backward()
        optimizer.step()
        schedule.step()
        plateau.step(loss)
        rates += [float(schedule.get_last_lr()[0]), plateau.get_last_lr()[0]]
        run.between()
    return {"rates": rates, **state_of(model)}


@program
def foreach_lists(run: Run) -> Values:
    """Lists that are larger than the tight budget."""
    count = 24
    a = [noise(run, 100, 100 + i) for i in range(count)]
    b = [noise(run, 100, 100 + i).abs() + 0.5 for i in range(count)]
    run.between()
    values: Values = {"add": torch._foreach_add(a, b, alpha=2)}
    values["mul"] = torch._foreach_mul(a, [float(i) for i in range(count)])
    values["norm"] = torch._foreach_norm(a, 2)
    values["addcdiv"] = torch._foreach_addcdiv(a, a, b, torch.arange(float(count)))
    values["lerp"] = torch._foreach_lerp(a, b, 0.3)
    torch._foreach_addcmul_(a, a, b, value=0.5)
    torch._foreach_copy_(b, a)
    torch._foreach_sqrt_(torch._foreach_abs(b))
    torch._foreach_zero_(a[: count // 2])
    parts = [torch._foreach_maximum(a, b), torch._foreach_exp(b), torch._foreach_pow(b, 2.0)]
    return {**values, "a": a, "b": b, "parts": parts, "total": nn.utils.get_total_norm(b)}


# ---- other models ----------------------------------------------------------------------------------------------------


@program
def convolution_batch_norm(run: Run) -> Values:
    model = nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(24, 32, 3, groups=4, stride=2), nn.GroupNorm(4, 32), nn.SiLU(), nn.ConvTranspose2d(32, 8, 3, stride=2),
        nn.BatchNorm2d(8, momentum=None), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(72, 10),
    ).to(run.device)  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    values = train(
        run,
        model,
        optimizer,
        lambda _: F.cross_entropy(model(noise(run, 4, 3, 20, 20)), torch.arange(4, device=run.device)),
    )
    model.eval()
    with torch.no_grad():
        channels_last = noise(run, 2, 3, 20, 20).to(memory_format=torch.channels_last)
        values["last"] = model.to(memory_format=torch.channels_last)(channels_last)
    values["resized"] = F.interpolate(noise(run, 2, 3, 9, 9), scale_factor=2.0, mode="bilinear")
    values["sampled"] = F.grid_sample(noise(run, 2, 3, 9, 9), noise(run, 2, 5, 5, 2).tanh(), align_corners=False)
    return values


@program
def recurrent(run: Run) -> Values:
    model = nn.LSTM(24, 48, num_layers=2, bidirectional=True, dropout=0.0).to(run.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    values = train(run, model, optimizer, lambda _: model(noise(run, 7, 5, 24))[0].square().mean(), 2)
    x = noise(run, 7, 5, 24).requires_grad_()
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([3, 7, 1, 5, 2]), enforce_sorted=False)
    run.between()
    y, (h, c) = model(packed)
    padded, lengths = nn.utils.rnn.pad_packed_sequence(y)
    run.between()
    padded.sum().backward()
    gru = nn.GRU(24, 16, batch_first=True).to(run.device)
    cell = nn.LSTMCell(24, 16).to(run.device)
    return {
        **values,
        "padded": padded,
        "lengths": lengths,
        "h": h,
        "c": c,
        "x": x.grad,
        "gru": gru(x.detach()),
        "cell": cell(x.detach()[0]),
    }


class Experts(nn.Module):
    def __init__(self, width: int = WIDTH, experts: int = 6) -> None:
        super().__init__()
        self.router = nn.Linear(width, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)) for _ in range(experts)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights, chosen = self.router(x).softmax(-1).topk(2)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows, slot = torch.where(chosen == number)  # the data decides which experts run
            if rows.numel():
                out.index_add_(0, rows, expert(x[rows]) * weights[rows, slot, None])
        return out


@program
def experts_with_routing(run: Run) -> Values:
    model = Experts().to(run.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return train(run, model, optimizer, lambda _: model(noise(run, 9, WIDTH)).square().mean(), 4, None)


@program
def embeddings(run: Run) -> Values:
    tables = nn.ModuleList([nn.Embedding(400, 32, sparse=True), nn.EmbeddingBag(300, 32, mode="mean", sparse=True)]).to(
        run.device
    )
    # The gradient of "max" adds atomically on CUDA: its bits depend on the order of three or more equal rows.
    mode = "sum" if run.device == "cuda" else "max"
    dense = nn.ModuleList(
        [nn.EmbeddingBag(200, 32, mode=mode), nn.Embedding(100, 32, padding_idx=0, max_norm=1.0), nn.Linear(32, 4)]
    ).to(run.device)
    first, second = torch.optim.SparseAdam(tables.parameters(), lr=0.01), torch.optim.Adagrad(dense.parameters())
    losses = []
    for _ in range(3):
        for optimizer in (first, second):
            optimizer.zero_grad()
        index = torch.randint(0, 100, (64,)).to(run.device)
        offsets = torch.arange(0, 64, 8, device=run.device)
        x = tables[0](index).view(8, 8, 32).sum(1) + tables[1](index, offsets) + dense[0](index, offsets)
        x = x + dense[1](index).view(8, 8, 32).mean(1)
        loss = dense[2](x).square().mean()
        loss.backward()
        run.between()
        first.step()
        second.step()
        losses.append(loss.detach())
    return {
        "losses": losses,
        "sparse": tables[0].weight.grad.coalesce(),
        **state_of(dense),
        "tables": dict(tables.state_dict()),
    }


@program
def two_optimizers(run: Run) -> Values:
    maker = nn.Sequential(nn.Linear(16, 128), nn.ReLU(), nn.Linear(128, WIDTH)).to(run.device)
    judge = nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Linear(WIDTH, 128)), nn.LeakyReLU(), nn.Linear(128, 1)
    ).to(run.device)
    a, b = (
        torch.optim.Adam(maker.parameters(), betas=(0.5, 0.9)),
        torch.optim.Adam(judge.parameters(), betas=(0.5, 0.9)),
    )
    losses = []
    for _ in range(3):
        real, fake = noise(run, 16, WIDTH).requires_grad_(), maker(noise(run, 16, 16))
        score = judge(real)
        (penalty,) = torch.autograd.grad(score.sum(), real, create_graph=True)
        loss = F.softplus(-score).mean() + F.softplus(judge(fake.detach())).mean() + penalty.square().sum(1).mean()
        b.zero_grad()
        loss.backward()
        b.step()
        run.between()
        cheat = F.softplus(-judge(fake)).mean()
        a.zero_grad()
        cheat.backward()
        a.step()
        losses += [loss.detach(), cheat.detach()]
        run.between()
    return {"losses": losses, "maker": state_of(maker, a), "judge": state_of(judge, b)}


class LowRank(nn.Module):
    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, base.in_features) * 0.1)
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + F.linear(F.linear(x, self.down), self.up)


@program
def low_rank_over_frozen_base(run: Run) -> Values:
    model = Transformer()
    model.requires_grad_(False)
    for block in model.blocks:
        block.mlp[0], block.attention.inner = LowRank(block.mlp[0]), LowRank(block.attention.inner)
    model.to(run.device)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    values = train(run, model, optimizer, lambda _: model.loss(tokens_on(run)))
    for block in model.blocks:
        layer = block.mlp[0]
        layer.base.weight.data += layer.up.data @ layer.down.data  # merge
    with torch.inference_mode():
        values["merged"] = model(tokens_on(run))
    return values


@program
def checkpointing(run: Run) -> Values:
    values = {}
    for reentrant in (False, True):
        torch.manual_seed(5)
        model = Transformer(dropout=0.1, checkpointing=reentrant)
        model.register_full_backward_hook(lambda *_: None)
        if reentrant:
            model.embedding.weight.requires_grad_(True)
        values[str(reentrant)] = train_transformer(run, steps=2, model=model)
    return values


@program
def train_and_evaluate(run: Run) -> Values:
    model = Transformer(dropout=0.2).to(run.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    values: Values = {"losses": []}
    for step, (batch, length) in enumerate([(4, 17), (2, 33), (7, 9), (1, 50), (4, 17)]):
        model.train()
        optimizer.zero_grad()
        loss = model.loss(tokens_on(run, batch, length))
        loss.backward()
        optimizer.step()
        run.between()
        model.eval()
        with torch.inference_mode() if step % 2 else torch.no_grad():
            values["losses"] += [loss.detach(), model.loss(tokens_on(run, step + 1, 20))]
        run.between()
    return {**values, **state_of(model, optimizer)}


@program
def encoder_fast_path(run: Run) -> Values:
    layer = nn.TransformerEncoderLayer(48, 4, 96, batch_first=True, dropout=0.1)
    model = nn.TransformerEncoder(layer, 2).to(run.device)
    x = noise(run, 3, 9, 48)
    mask = torch.arange(9, device=run.device)[None] > torch.tensor([[8], [5], [3]], device=run.device)
    y = model(x, src_key_padding_mask=mask)
    run.between()
    y.mean().backward()
    model.eval()
    with torch.inference_mode():
        fast = model(x, src_key_padding_mask=mask)
    return {"y": y, "fast": fast, **state_of(model)}


@program
def growing_cache(run: Run) -> Values:
    model = Transformer().to(run.device).eval()
    keys: list[torch.Tensor] = []
    attention = model.blocks[0].attention
    made = tokens_on(run, 2, 4)
    outputs = []
    with torch.inference_mode():
        for _ in range(12):
            x = model.embedding(made[:, -1:])
            q, k, v = attention.inner(x).chunk(3, -1)
            keys = [torch.cat([old, new], 1) for old, new in zip(keys, (k, v), strict=True)] if keys else [k, v]
            y = F.scaled_dot_product_attention(q, *keys)
            outputs.append(y)
            chosen = torch.multinomial(model.head(y)[:, -1].softmax(-1).cpu(), 1).to(run.device)
            made = torch.cat([made, chosen], 1)
            run.between()
    return {"made": made, "keys": keys, "outputs": outputs}
