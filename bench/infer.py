"""Inference beyond the device budget, beside its bound and beside the same model all in VRAM.

    python bench/infer.py --shape 13b --device-budget 8GiB --tokens 2048

Prints one JSON line: median seconds of a forward, the bound (bytes that must cross the link / measured rate, or the
compute time when that is longer), bytes moved, the driver's figure for the process, and whether the output equals the
all-in-VRAM output bit for bit.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable

import torch

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from llama_shape import SHAPES, build  # noqa: E402


def digest(tensor: torch.Tensor) -> str:
    """SHA-256 of the tensor's bytes."""
    raw = tensor.detach().contiguous().cpu().view(torch.uint8)
    return hashlib.sha256(raw.numpy().tobytes()).hexdigest()[:16]


def synchronize(device: str) -> None:
    """Waits for the device; nothing to do on the host device."""
    if device == "cuda":
        torch.cuda.synchronize()


def process_device_bytes() -> int:
    """Device memory of this process as the driver reports it (whole-device figure; nothing else runs there)."""
    free, total = torch.cuda.mem_get_info()
    return total - free


def measure(args: argparse.Namespace, device: str, after_warmup: Callable[[], None] = lambda: None) -> dict:
    """Builds the model and times its forwards; the median of those after warm-up, a digest of the output, peaks."""
    shape = SHAPES[args.shape]
    started = time.perf_counter()
    model = build(shape, device, torch.bfloat16).eval()
    synchronize(device)
    built = time.perf_counter() - started
    tokens = torch.randint(
        0, shape.vocabulary, (1, args.tokens), generator=torch.Generator().manual_seed(1)
    ).to(device)
    times, peak = [], 0
    with torch.inference_mode():
        for index in range(args.warmup + args.repeat):
            if index == args.warmup:
                after_warmup()
            synchronize(device)
            start = time.perf_counter()
            logits = model(tokens)
            synchronize(device)
            times.append(time.perf_counter() - start)
            if device == "cuda":
                peak = max(peak, process_device_bytes())
            result = digest(logits)
            del logits
    del model
    gc.collect()
    return {
        "seconds": statistics.median(times[args.warmup :]),
        "times": [round(t, 4) for t in times],
        "build_seconds": round(built, 2),
        "digest": result,
        "device_bytes_max": peak,
        "allocated_bytes_max": torch.cuda.max_memory_allocated() if device == "cuda" else 0,
    }


def best_links(native, device: str) -> dict[str, float]:
    """The links' rates in GB/s, the best of three looks: a look is short, and a machine may have other tenants."""
    looks = [native.measure_links({"device": device}) for _ in range(3)]
    return {name: max(look[name] for look in looks) for name in looks[0]}


def main() -> int:
    """Runs both sides and prints the row; exit code 1 where the bits differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="tiny", choices=sorted(SHAPES))
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--device-budget", default="4MiB")
    parser.add_argument("--host-budget", default=None)
    parser.add_argument("--nvme-path", default=None)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--link-gb-per-s", type=float, default=None, help="host to device; default: measured")
    parser.add_argument("--no-plain", action="store_true", help="skip the all-in-VRAM side")
    parser.add_argument("--trace", default=None, help="write a Perfetto timeline here")
    args = parser.parse_args()

    import tierpage
    from tierpage import _C

    device = args.device
    plain = None
    if not args.no_plain:
        plain = measure(args, device)
        if device == "cuda":
            torch.cuda.empty_cache()
    links = best_links(_C, device)
    rate = args.link_gb_per_s or links.get("host_to_device", 0.0)
    context = process_device_bytes() if device == "cuda" else 0
    tierpage.enable(nvme_path=args.nvme_path, device=device, device_budget=args.device_budget, host_budget=args.host_budget)
    before: dict = {}
    paged = measure(args, device, lambda: before.update(tierpage.memory_stats()))
    after = tierpage.memory_stats()
    if args.trace:
        tierpage.export_trace(args.trace)
    budget_bytes = tierpage.config().device_budget
    weights = SHAPES[args.shape].parameters() * 2
    moved = {k: (after[k] - before[k]) / args.repeat for k in after if k.startswith(("fetch_bytes", "writeback_bytes"))}
    # Beside the weights an operator needs room for what it reads and makes: what the plain run took above the weights.
    working_set = max(plain["allocated_bytes_max"] - weights, 0) if plain else 0
    link_bound = max(weights - budget_bytes + working_set, 0) / (rate * 1e9) if rate else 0.0
    bound = max(link_bound, plain["seconds"] if plain else 0.0)
    row = {
        "bench": "infer", "shape": args.shape, "tokens": args.tokens, "device": device,
        "device_budget_bytes": budget_bytes, "weight_bytes": weights, "working_set_bytes": working_set, "link_gb_per_s": round(rate, 2),
        "seconds": round(paged["seconds"], 4), "bound_seconds": round(bound, 4),
        "ratio_to_bound": round(paged["seconds"] / bound, 3) if bound else None,
        "plain_seconds": round(plain["seconds"], 4) if plain else None,
        "bits_equal": plain["digest"] == paged["digest"] if plain else None,
        "times": paged["times"], "build_seconds": paged["build_seconds"],
        "bytes_per_forward": {k: int(v) for k, v in moved.items() if v},
        "stall_seconds_total": round(after["stall_seconds.total"] - before["stall_seconds.total"], 3),
        "driver_bytes_above_context": paged["device_bytes_max"] - context,
        "prefetch": {k: after[k] for k in after if k.startswith("prefetch.")},
        "faults": after["faults.count"] - before["faults.count"],
    }
    print(json.dumps(row))
    return 0 if row["bits_equal"] in (True, None) else 1


if __name__ == "__main__":
    sys.exit(main())
