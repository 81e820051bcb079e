"""Whether coded pages come back bit for bit on a GPU, and what a small model gains; one line a check.

    python tests/gpu/codes.py

Small frames, so that many pages pass through the coder: each type of element and odd content goes down and comes back,
with and without the comparing decoder (paranoid), beside other threads' work, with a third tier, and through budgets
that change. Exit code 1 if anything differs.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time

import torch

import tierpage

MIB = 2**20
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int8, torch.int64)
failures = 0


def say(name: str, right: bool, **more: object) -> None:
    global failures
    failures += not right
    print(f"{'ok' if right else 'DIFFERS'} {name} {more or ''}", flush=True)


def contents(count: int) -> dict[str, torch.Tensor]:
    """Tensors of some MiB, made by the device, and what is odd about floating point numbers."""
    made: dict[str, torch.Tensor] = {}
    for dtype in DTYPES:
        if dtype.is_floating_point:
            made[f"normal {dtype}"] = (torch.randn(count, device="cuda") * 0.02).to(dtype)
        else:
            made[f"random {dtype}"] = torch.randint(-128, 127, (count,), device="cuda").to(dtype)
    every = torch.arange(65536, device="cuda", dtype=torch.int32).to(torch.int16)
    for dtype in (torch.bfloat16, torch.float16):
        made[f"every {dtype}"] = every.view(dtype).repeat(count // 65536 + 1)
        made[f"specials {dtype}"] = (
            torch.tensor([0.0, -0.0, float("inf"), float("-inf"), float("nan"), 1e-40, -1e-40, 1.0], device="cuda")
            .to(dtype)
            .repeat(count // 8)
        )
    made["payloads"] = torch.randint(0x7F800001, 0x7FFFFFFF, (count,), device="cuda", dtype=torch.int32).view(
        torch.float32
    )
    made["zeros"] = torch.zeros(count, device="cuda")
    made["noise"] = torch.randint(0, 256, (4 * count,), device="cuda", dtype=torch.uint8)
    made["squares"] = (torch.randn(count, device="cuda") ** 2) * 1e-7
    made["part"] = torch.cat([torch.randn(count // 2, device="cuda"), torch.zeros(count // 2 + 1, device="cuda")])
    return made


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().view(torch.uint8).cpu()


def check(name: str, **settings: object) -> None:
    torch.manual_seed(0)
    torch.cuda.empty_cache()
    count = 3 * MIB + 1024
    plain = {key: bits(value) for key, value in contents(count).items()}
    torch.cuda.empty_cache()
    started = time.perf_counter()
    usual = {"device_budget": "96MiB", "host_budget": "2GiB", "frame_bytes_max": 4 * MIB}
    tierpage.enable(compress="on", **{**usual, **settings})
    first = time.perf_counter() - started
    try:
        torch.manual_seed(0)
        paged = contents(count)
        for turn in range(3):
            wrong = [key for key, value in paged.items() if not torch.equal(bits(value), plain[key])]
            say(f"{name}, turn {turn}", not wrong, wrong=wrong)
            if turn == 1:
                tierpage.evict(list(paged.values()))
        stats = tierpage.memory_stats()
        figures = {key: value for key, value in stats.items() if key.startswith(("code_", "coded_", "content_"))}
        say(f"{name}, coded", stats["code_pages.decode"] > 0, enable_seconds=round(first, 2), **figures)
        del paged
    finally:
        tierpage.disable()


def threads() -> None:
    """Four threads, a stream each, compute on their own tensors while all of them move."""
    torch.manual_seed(1)
    layers = [torch.randn(1024, 1024, device="cuda", dtype=torch.bfloat16) * 0.03 for _ in range(96)]
    start = torch.randn(64, 1024, device="cuda", dtype=torch.bfloat16)

    def forward(of: list[torch.Tensor]) -> torch.Tensor:
        x = start
        for layer in of:
            x = torch.tanh(x @ layer)
        return x

    expected = bits(forward(layers))
    saved = [bits(layer) for layer in layers]
    del layers
    torch.cuda.empty_cache()
    tierpage.enable(compress="on", device_budget="64MiB", host_budget="2GiB", frame_bytes_max=2 * MIB, paranoid=True)
    try:
        right = [True] * 4

        def work(index: int) -> None:
            own = [one.view(torch.bfloat16).view(1024, 1024).to("cuda") for one in saved]
            with torch.cuda.stream(torch.cuda.Stream()):
                for turn in range(6):
                    right[index] &= torch.equal(bits(forward(own)), expected)
                    own[turn] = own[turn].clone()

        workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        say("four threads", all(right), pages=tierpage.memory_stats()["code_pages.decode"])
    finally:
        tierpage.disable()


def main() -> None:
    check("compared", paranoid=True)
    check("small frames", frame_bytes_max=2 * MIB, device_budget="64MiB")
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        tiers = {"nvme_path": folder, "nvme_budget": "2GiB", "host_budget": "96MiB", "staging_slot_bytes": MIB}
        check("three tiers", **tiers)
        check("three tiers, checked", **tiers, verify="full", paranoid=True)
    threads()
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
