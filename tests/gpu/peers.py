"""Two GPUs, one of which pages: copies between them, kernels that read the other one's memory, DataParallel.

python tests/gpu/peers.py          prints one line for each program; exit code 1 where one differs
"""

from __future__ import annotations

import gc
import sys
import traceback
from collections.abc import Callable

import torch

import tierpage

MIB = 1 << 20
Program = Callable[[], list[torch.Tensor]]


def copies() -> list[torch.Tensor]:
    """Contiguous ones by the copy engine, others by a kernel of one device in the other one's memory."""
    there = torch.arange(4096 * 4096, device="cuda:1", dtype=torch.float32).view(4096, 4096)
    here = [there.to("cuda:0") + i for i in range(6)]
    back = [x.t().to("cuda:1") for x in here]
    turned = torch.empty(4096, 4096, device="cuda:0")
    turned.t().copy_(there)
    for x, y in zip(here, back, strict=True):
        x.copy_(y.t().mul(2))
    return [*here, *back, turned]


def data_parallel() -> list[torch.Tensor]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(*[torch.nn.Linear(2048, 2048) for _ in range(12)]).to("cuda:0")
    parallel = torch.nn.DataParallel(model, device_ids=[0, 1])
    x = torch.randn(64, 2048, device="cuda:0")
    for _ in range(2):
        loss = parallel(x).square().mean()
        loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


PROGRAMS: list[Program] = [copies, data_parallel]


def compare(program: Program, copied_before: bool) -> bool:
    plain = [tensor.cpu() for tensor in program()] if copied_before else None
    gc.collect()
    torch.cuda.empty_cache()
    tierpage.enable(device="cuda:0", device_budget=256 * MIB, host_budget="4GiB")
    try:
        paged = [tensor.cpu() for tensor in program()]
        fetched = tierpage.memory_stats()["fetch_bytes.host_to_device"]
    finally:
        gc.collect()
        tierpage.disable()
    if plain is None:
        plain = [tensor.cpu() for tensor in program()]
    same = all(torch.equal(a, b) for a, b in zip(plain, paged, strict=True))
    when = "before" if copied_before else "after"
    print(
        f"{program.__name__:16} plain run {when:6} {'ok' if same else 'DIFFERS'}, fetched {fetched / MIB:.0f} MiB",
        flush=True,
    )
    return same


def main() -> int:
    """The devices are let into each other's memory by the first copy: here after enable, then before it."""
    failed = 0
    for copied_before in (False, True):
        for program in PROGRAMS:
            try:
                failed += not compare(program, copied_before)
            except Exception:
                traceback.print_exc()
                print(f"{program.__name__:16} FAILED", flush=True)
                failed += 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
