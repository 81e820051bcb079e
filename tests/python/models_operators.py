"""Programs about groups of operators: views, types, sorting, sparse tensors, lists, errors."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from harness import Run
from models_base import WIDTH, Block, Values, noise, program, state_of

# ---- operators -------------------------------------------------------------------------------------------------------


@program
def views_and_out(run: Run) -> Values:
    x = noise(run, 128, 128)
    out = torch.empty(0, device=run.device)
    torch.mm(x, x, out=out)
    torch.add(x, 1, out=out[:, ::1])
    run.between()
    x[::2].t()[3:7].mul_(3)
    x.diagonal().fill_(7)
    x[x > 1.0] = 0.5
    x.unsqueeze_(0).squeeze_(0).t_()
    run.between()
    y = x.expand(3, 128, 128).contiguous()
    y.resize_(4, 128, 128)[3:].zero_()
    z = torch.zeros(4096, device=run.device)
    z.set_(x.untyped_storage(), 64, (100, 64), (128, 1))
    z.index_put_((torch.arange(5, device=run.device),), torch.tensor(1.5, device=run.device), accumulate=False)
    z.copy_(z.flip(0))
    run.between()
    x.data = x.data * 2
    view = x.view(torch.int32)[:, 3:9].unfold(0, 4, 2)
    return {
        "x": x, "out": out, "y": y, "z": z, "real": torch.view_as_real(torch.complex(x, x).conj().resolve_conj()), "view": view,
        "strided": torch.as_strided(x, (10, 10), (65, 1), 3), "split": torch.tensor_split(x, 5, 1), "moved": x.movedim(0, 1).roll(3),
    }  # fmt: skip


@program
def overlapping_writes_through_views(run: Run) -> Values:
    """Parts of one large tensor are written and read through views that cover some of its pages only."""
    x = torch.zeros(60_000, device=run.device)
    parts = x.split(7_001)
    for step in range(4):
        for number, part in enumerate(parts):
            if (number + step) % 3 == 0:
                part.add_(number + 1)
        run.between()
        x[5_000:50_000:7].mul_(2)
        run.between()
        parts[3].copy_(parts[5] + 1)
    rows = x[:59_900].view(599, 100)
    rows[:, 50] = -1
    run.between()
    return {"x": x, "sum": x.sum(), "part": parts[4], "rows": rows[::3].t()}


@program
def complex_and_integers(run: Run) -> Values:
    x = torch.complex(noise(run, 48, 48), noise(run, 48, 48))
    i = torch.randint(-1000, 1000, (64, 64)).to(run.device)
    run.between()
    values: Values = {
        "matmul": x @ x.mH,
        "angle": x.angle(),
        "exp": x.exp(),
        "conj": x.conj() + 1,
        "real": x.real * 2,
        "neg": x.imag.neg(),
    }
    for kind in (torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool, torch.float16, torch.float64):
        values[str(kind)] = [i.to(kind), (i.to(kind) == 1).sum()]
    run.between()
    values["bits"] = [i & 255, i << 2, i ^ 77, i // 7, i % 13, torch.gcd(i, i.t()), i.sum(0), i.cumsum(1)]
    values["count"] = [torch.bincount(i.abs().flatten()), torch.histc(i.float(), 20), i.argmax(1), i.median(0)]
    return values


@program
def sorting_and_searching(run: Run) -> Values:
    x = noise(run, 70, 70)
    whole = (x * 4).round()
    run.between()
    values: Values = {
        "sort": x.sort(0),
        "topk": x.topk(7),
        "unique": whole.unique(return_inverse=True, return_counts=True),
    }
    values["nonzero"] = [whole.nonzero(), torch.argwhere(whole > 2), x.masked_select(x > 0)]
    run.between()
    values["others"] = [
        x.argsort(stable=True),
        x.kthvalue(5),
        x.mode(),
        torch.searchsorted(x[0].sort()[0], x),
        x.cummax(0),
        x.unique_consecutive(),
    ]
    index = x.argsort(1)
    values["moves"] = [
        x.gather(1, index),
        torch.zeros_like(x).scatter_(1, index, x),
        torch.zeros_like(x).scatter_reduce(1, index, x, "amax"),
        x.take_along_dim(index, 1),
    ]
    return values


@program
def sparse_tensors(run: Run) -> Values:
    a = noise(run, 80, 80).relu().to_sparse()
    dense = noise(run, 80, 30).requires_grad_()
    run.between()
    csr = a.to_sparse_csr()
    product = torch.sparse.mm(a, dense)
    run.between()
    product.square().sum().backward()
    values: Values = {
        "product": product,
        "gradient": dense.grad,
        "csr": csr,
        "mm": csr @ dense.detach(),
        "dense": csr.to_dense(),
    }
    values["sum"] = [
        torch.sparse.sum(a),
        torch.sparse.sum(a, 0),
        (a + a).coalesce(),
        (a * 3).to_dense(),
        a.t().coalesce(),
    ]
    run.between()
    parts = torch.sparse_coo_tensor(torch.randint(0, 50, (2, 300)).to(run.device), noise(run, 300), (50, 50))
    values["parts"] = [
        parts.coalesce(),
        torch.sparse.softmax(parts.coalesce(), 1),
        parts.coalesce().index_select(0, torch.tensor([1, 5], device=run.device)),
    ]
    values["blocks"] = noise(run, 16, 16).to_sparse_bsr((4, 4))
    values["columns"] = noise(run, 16, 16).to_sparse_csc()
    return values


@program
def einsum_attention_transforms(run: Run) -> Values:
    x, y = noise(run, 6, 20, 24), noise(run, 6, 24, 20)
    run.between()
    values: Values = {
        "einsum": [
            torch.einsum("bij,bjk->bik", x, y),
            torch.einsum("bij,cji->bc", x, y),
            torch.tensordot(x, y, ([2], [1])),
        ]
    }
    q, k, v = (noise(run, 2, 4, 20, 16).requires_grad_() for _ in range(3))
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=torch.ones(20, 20, device=run.device).tril().bool())
    run.between()
    attended.sum().backward()
    values["attention"] = [attended, q.grad, k.grad, v.grad]
    values["fft"] = [
        torch.fft.fft2(x),
        torch.fft.irfft(torch.fft.rfft(x)),
        torch.fft.fftshift(x),
        torch.stft(x[0].flatten(), 64, window=torch.hann_window(64, device=run.device), return_complex=True),
    ]
    return values


@program
def linear_algebra(run: Run) -> Values:
    x = noise(run, 40, 40)
    s = x @ x.mT + 40 * torch.eye(40, device=run.device)
    run.between()
    values: Values = {
        "qr": torch.linalg.qr(x),
        "inverse": torch.linalg.inv(s),
        "cholesky": torch.linalg.cholesky(s),
        "solve": torch.linalg.solve(s, x),
    }
    run.between()
    values["more"] = [
        torch.linalg.eigh(s),
        torch.linalg.svd(x),
        torch.linalg.slogdet(s),
        torch.linalg.matrix_exp(x / 50),
    ]
    s = s.detach().requires_grad_()
    torch.linalg.cholesky(s).logdet().backward()
    return {**values, "gradient": s.grad, "norm": torch.linalg.matrix_norm(x, 2)}


@program
def lists_and_shapes(run: Run) -> Values:
    parts = [noise(run, 10, WIDTH) for _ in range(8)]
    run.between()
    joined, stacked = torch.cat(parts), torch.stack(parts)
    picked = stacked[torch.tensor([0, 3], device=run.device), :, torch.tensor([1, 2], device=run.device)]
    run.between()
    nested = torch.nested.nested_tensor([part[: i + 1] for i, part in enumerate(parts[:4])])
    return {
        "joined": joined, "stacked": stacked, "picked": picked, "grid": torch.meshgrid(joined[0], joined[1], indexing="ij"),
        "blocks": torch.block_diag(*parts[:3]), "nested": nested, "padded": torch.nested.to_padded_tensor(nested, 0.0),
        "products": torch.cartesian_prod(joined[0, :9], joined[1, :9]), "item": float(joined[3, 3]), "equal": torch.equal(joined, joined.clone()),
        "text": repr(parts[0]), "list": parts[1][0].tolist(),
    }  # fmt: skip


@program
def quantized_and_jit(run: Run) -> Values:
    model = nn.Sequential(nn.Linear(WIDTH, 64), nn.ReLU(), nn.Linear(64, 8)).to(run.device)
    x = noise(run, 8, WIDTH)
    traced = torch.jit.trace(model, x)
    run.between()
    values: Values = {"traced": traced(x)}
    if run.device == "cpu":
        with contextlib.suppress(AttributeError):
            values["dynamic"] = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})(x)
        values["quantized"] = torch.quantize_per_tensor(x, 0.1, 3, torch.qint8)
        values["channels"] = torch.quantize_per_channel(
            x, torch.full((8,), 0.1), torch.zeros(8), 0, torch.quint8
        ).dequantize()
        values["onednn"] = x.to_mkldnn().relu().to_dense() if torch.backends.mkldnn.is_available() else 0
    return values


@program
def exceptions_between_steps(run: Run) -> Values:
    """Operators that fail leave nothing behind."""
    model = nn.Linear(WIDTH, WIDTH).to(run.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def failing() -> Iterator[Callable[[], Any]]:
        x = noise(run, 8, WIDTH)
        yield lambda: x + torch.ones(7, 7, device=run.device)
        yield lambda: x @ x
        yield lambda: torch.cat([x, x.t()])
        yield lambda: torch._foreach_add_([x, x], [x])
        yield lambda: x.view(3, 3)
        yield lambda: torch.linalg.cholesky(-torch.eye(40, device=run.device))

    losses = []
    for _ in range(3):
        for call in failing():
            try:
                call()
            except RuntimeError:
                continue
            raise AssertionError("no error was raised")
        optimizer.zero_grad()
        loss = model(noise(run, 8, WIDTH)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        run.between()
    return {"losses": losses, **state_of(model, optimizer)}


@program
def dispatch_modes(run: Run) -> Values:
    """Python modes run above the interceptor and see the same operators."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import FlopCounterMode

    class Counting(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.calls += 1
            return function(*args, **(kwargs or {}))

    model = Block().to(run.device)
    x = noise(run, 2, 16, WIDTH)
    with Counting() as counting:
        model(x).sum().backward()
    run.between()
    with FlopCounterMode(display=False) as counter:
        model(x)
    return {"calls": counting.calls, "operations": counter.get_total_flops(), **state_of(model)}
