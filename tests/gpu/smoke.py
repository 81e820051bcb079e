"""First look at a GPU machine: small training runs under a tight budget, bit for bit, with statistics and limits.

    python tests/gpu/smoke.py

Exit code 0 when every run equals its plain run.
"""

from __future__ import annotations

import sys
import time

import torch
from torch import nn

import tierpage


def train(kind: str) -> list[torch.Tensor]:
    """Trains a small network for a few steps; losses and parameter sums in float64."""
    torch.manual_seed(0)
    width = 1536
    model = nn.Sequential(*[m for _ in range(6) for m in (nn.Linear(width, width), nn.GELU())]).cuda()
    options = {"fused": True} if kind == "fused" else {"foreach": True} if kind == "foreach" else {"foreach": False}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, **options)
    out = []
    for step in range(6):
        x = torch.randn(256, width, device="cuda", generator=torch.Generator("cuda").manual_seed(step))
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = model(x).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        out.append(loss.detach().cpu())
    out.extend(p.detach().cpu().clone() for p in model.parameters())
    return out


def main() -> int:
    """Runs every kind plain, then paged in two configurations."""
    print(torch.__version__, torch.cuda.get_device_name())
    kinds = ("fused", "foreach", "single")
    plain = {kind: train(kind) for kind in kinds}
    torch.cuda.empty_cache()
    failures = 0
    for paranoid in (False, True):
        tierpage.enable(device="cuda", device_budget="128MiB", host_budget="2GiB", paranoid=paranoid)
        for kind in kinds:
            start = time.perf_counter()
            paged = train(kind)
            equal = all(torch.equal(a, b) for a, b in zip(plain[kind], paged, strict=True))
            failures += not equal
            stats = tierpage.memory_stats()
            print(
                f"paranoid={paranoid} {kind}: equal={equal} {time.perf_counter() - start:.2f} s,"
                f" faults {stats['faults.count']}, up {stats['fetch_bytes.host_to_device'] >> 20} MiB,"
                f" device peak {stats['resident_bytes.device.peak'] >> 20} MiB,"
                f" torch allocated {torch.cuda.memory_allocated() >> 20} MiB",
                flush=True,
            )
        tierpage.disable()
    print("passed" if failures == 0 else f"{failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
