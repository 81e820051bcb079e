"""What needs more at once than the device budget, on a GPU: equal bits, and the time beside its bound.

    python tests/gpu/overflow.py          prints one line for each program; exit code 1 where one differs

The bound is the longer of the plain run and the bytes beyond the budget at the rate at which a kernel reads RAM.
"""

from __future__ import annotations

import gc
import sys
import time
import traceback
from collections.abc import Callable

import torch
from torch.nn import functional as F

import tierpage

GIB = 1 << 30
BUDGET = 2 * GIB
READ_BYTES_PER_SECOND = 50e9
Program = Callable[[], list[torch.Tensor]]


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(*shape, device="cuda", generator=generator, dtype=dtype)


def product() -> list[torch.Tensor]:
    """Two operands of twice the budget together."""
    a, b = normal(1, 32768, 32768), normal(2, 32768, 32768)
    return [a @ b[:, :4096]]


def elementwise() -> list[torch.Tensor]:
    """One tensor of twice the budget, written in place."""
    x = normal(3, 2 * BUDGET // 4, dtype=torch.float32)
    x.mul_(2).add_(1)
    return [x[:: 1 << 12].clone()]


def loss() -> list[torch.Tensor]:
    """Cross entropy over logits of the size of the budget, with gradients."""
    hidden = normal(4, 8192, 1024, dtype=torch.float32).requires_grad_()
    weight = normal(5, 65536, 1024, dtype=torch.float32)
    targets = torch.arange(8192, device="cuda")
    value = F.cross_entropy(hidden @ weight.t(), targets)
    value.backward()
    return [value.detach(), hidden.grad]


def pinned() -> list[torch.Tensor]:
    """A pinned set of one and a half times the budget, used by raw kernels too."""
    tensors = [normal(10 + i, GIB // 4, dtype=torch.float32) for i in range(3)]
    if tierpage.is_enabled():
        with tierpage.pin(tensors):
            for tensor in tensors:
                tensor.add_(1)
    else:
        for tensor in tensors:
            tensor.add_(1)
    return [tensor[:: 1 << 12].clone() for tensor in tensors]


def sorted_atomics() -> list[torch.Tensor]:
    """Atomic additions and a sort of what lies beyond the budget."""
    index = torch.randint(0, BUDGET // 4, (1 << 26,), device="cuda", generator=torch.Generator("cuda").manual_seed(7))
    x = torch.zeros(3 * BUDGET // 8, device="cuda", dtype=torch.int32)
    y = torch.zeros(3 * BUDGET // 8, device="cuda", dtype=torch.int32)
    x.scatter_add_(0, index, torch.ones_like(index, dtype=torch.int32))
    y.scatter_add_(0, index, torch.ones_like(index, dtype=torch.int32) * 3)
    both = x + y
    return [both.sum(), both.max(), both[:: 1 << 12].clone()]


PROGRAMS: list[Program] = [product, elementwise, loss, pinned, sorted_atomics]


def timed(program: Program) -> tuple[list[torch.Tensor], float]:
    torch.cuda.synchronize()
    start = time.perf_counter()
    result = program()
    torch.cuda.synchronize()
    return [tensor.cpu() for tensor in result], time.perf_counter() - start


def compare(program: Program) -> bool:
    timed(program)
    plain, plain_seconds = timed(program)
    gc.collect()
    torch.cuda.empty_cache()
    reserved = torch.cuda.memory_reserved()
    tierpage.enable(device="cuda", device_budget=BUDGET, host_budget=24 * GIB)
    try:
        timed(program)
        paged, seconds = timed(program)
        stats = tierpage.memory_stats()
    finally:
        gc.collect()
        tierpage.disable()
    same = all(torch.equal(a, b) for a, b in zip(plain, paged, strict=True))
    beyond = stats["overflow_bytes.peak"]
    print(
        f"{program.__name__:16} {'ok' if same else 'DIFFERS'}  {seconds:.3f} s, plain {plain_seconds:.3f}, overflow "
        f"{beyond / GIB:.2f} GiB in {stats['overflows.count']} requests (once at 50 GB/s {beyond / READ_BYTES_PER_SECOND:.3f} s), "
        f"device peak {stats['resident_bytes.device.peak'] / GIB:.2f} GiB, "
        f"{reserved >> 20} MiB of torch's before, {torch.cuda.memory_reserved() >> 20} after, "
        f"mapping {stats['pager_thread_seconds.mapping']:.3f} s in both runs",
        flush=True,
    )
    return same and stats["overflows.count"] > 0


def main() -> int:
    failed = 0
    for program in PROGRAMS:
        if sys.argv[1:] and program.__name__ not in sys.argv[1:]:
            continue
        try:
            failed += not compare(program)
        except Exception:
            traceback.print_exc()
            print(f"{program.__name__:16} FAILED", flush=True)
            failed += 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
