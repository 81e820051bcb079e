"""Inference beyond the device budget, beside its bound and beside the same model all in VRAM.

    python bench/infer.py --shape 13b --device-budget 8GiB --tokens 2048
    python bench/infer.py --shape 13b --tokens 2048 --sweep 40GiB,16GiB,8GiB,4GiB

Prints one JSON line a budget: median seconds of a forward, the bound (bytes that must cross the link / measured rate, or
the compute time when that is longer), bytes moved, the driver's figure for the process, and whether the output equals the
all-in-VRAM output bit for bit. A budget that is too small gives a row with "error".

A sweep runs the plain side once, then every budget in a process of its own: frames, locked RAM and the trace of one
budget must not help or hinder the next, and a failure costs one row. It ends at the first budget that is refused.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from llama_shape import SHAPES, Shape, build
from machine import (
    Look,
    add_cores,
    best_links,
    hold_cores,
    look,
    process_device_bytes,
    provenance,
    synchronize,
    usage,
)

REFUSED = 3  # exit code: the budget was too small


def digest(tensor: torch.Tensor) -> str:
    """SHA-256 of the tensor's bytes."""
    raw = tensor.detach().contiguous().cpu().view(torch.uint8)
    return hashlib.sha256(raw.numpy().tobytes()).hexdigest()[:16]


def make_tokens(shape: Shape, count: int, device: str) -> torch.Tensor:
    """The one input that every run gets."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, shape.vocabulary, (1, count), generator=generator).to(device)


def time_forwards(
    forward: Callable[[torch.Tensor], torch.Tensor],
    tokens: torch.Tensor,
    args: argparse.Namespace,
    device: str,
    after_warmup: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Seconds of each forward, the median of those after warm-up, a digest of the output, the driver's peak."""
    times, peak = [], 0
    with torch.inference_mode():
        for index in range(args.warmup + args.repeat):
            if index == args.warmup:
                after_warmup()
            synchronize(device)
            start = time.perf_counter()
            logits = forward(tokens)
            synchronize(device)
            times.append(time.perf_counter() - start)
            if device == "cuda":
                peak = max(peak, process_device_bytes())
            result = digest(logits)
            del logits
    return {
        "seconds": statistics.median(times[args.warmup :]),
        "times": [round(t, 4) for t in times],
        "digest": result,
        "device_bytes_max": peak,
        "allocated_bytes_max": torch.cuda.max_memory_allocated() if device == "cuda" else 0,
    }


def measure(args: argparse.Namespace, device: str, after_warmup: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Builds the model where its tensors are made by default, and times its forwards."""
    shape = SHAPES[args.shape]
    started = time.perf_counter()
    model = build(shape, device, torch.bfloat16).eval()
    synchronize(device)
    built = time.perf_counter() - started
    out = time_forwards(model, make_tokens(shape, args.tokens, device), args, device, after_warmup)
    del model
    gc.collect()
    return {**out, "build_seconds": round(built, 2)}


def load_kernels(shape: Shape, token_count: int, device: str) -> None:
    """One layer's forward, thrown away: what CUDA loads for it is part of the context, not of what a run takes.

    A plain run in the same process does this by itself.
    """
    if device != "cuda":
        return
    small = build(dataclasses.replace(shape, layers=1), device, torch.bfloat16).eval()
    with torch.inference_mode():
        small(make_tokens(shape, token_count, device))
    synchronize(device)
    del small
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def given_plain(args: argparse.Namespace) -> dict[str, Any]:
    """The plain side as an earlier run measured it."""
    weights = SHAPES[args.shape].parameters() * 2
    return {
        "seconds": args.plain_seconds, "digest": args.plain_digest,
        "allocated_bytes_max": weights + args.working_set_bytes,
    }  # fmt: skip


def paged_row(args: argparse.Namespace, device: str, plain: dict[str, Any] | None, rate: float) -> dict[str, Any]:
    """Runs the model under tierpage and puts the figures beside their bound."""
    import tierpage

    context = process_device_bytes() if device == "cuda" else 0
    tierpage.enable(
        nvme_path=args.nvme_path, device=device, device_budget=args.device_budget, host_budget=args.host_budget
    )
    looks: list[Look] = []
    paged = measure(args, device, lambda: looks.append(look()))
    looks.append(look())
    before, after = (one.stats for one in looks)
    if args.trace:
        tierpage.export_trace(args.trace)
    given_bytes = tierpage.config().device_budget
    weights = SHAPES[args.shape].parameters() * 2
    moved = {k: (after[k] - before[k]) / args.repeat for k in after if k.startswith(("fetch_bytes", "writeback_bytes"))}
    # Beside the weights an operator needs room for what it reads and makes: what the plain run took above the weights.
    working_set = max(plain["allocated_bytes_max"] - weights, 0) if plain else 0
    link_bound = max(weights - given_bytes + working_set, 0) / (rate * 1e9) if rate else 0.0
    bound = max(link_bound, plain["seconds"] if plain else 0.0)
    return {
        "bench": "infer", "shape": args.shape, "tokens": args.tokens, "device": device,
        "device_budget_bytes": given_bytes, "weight_bytes": weights, "working_set_bytes": working_set, "link_gb_per_s": round(rate, 2),
        "seconds": round(paged["seconds"], 4), "bound_seconds": round(bound, 4),
        "ratio_to_bound": round(paged["seconds"] / bound, 3) if bound else None,
        "plain_seconds": round(plain["seconds"], 4) if plain else None,
        "bits_equal": plain["digest"] == paged["digest"] if plain and plain["digest"] else None,
        "times": paged["times"], "build_seconds": paged["build_seconds"],
        "bytes_per_forward": {k: int(v) for k, v in moved.items() if v},
        "stall_seconds_total": round(after["stall_seconds.total"] - before["stall_seconds.total"], 3),
        "driver_bytes_above_context": paged["device_bytes_max"] - context,
        "prefetch": {k: after[k] - before[k] for k in after if k.startswith("prefetch.")},
        "faults": after["faults.count"] - before["faults.count"], **usage(*looks),
        **provenance(device),
    }  # fmt: skip


def budget_bytes(text: str, device: str) -> int:
    """A budget as it is given on the command line, in bytes. Raises tierpage's ConfigError where it is no size."""
    from tierpage.sizes import parse_size

    host_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return parse_size(text, "device_budget").of(torch.cuda.mem_get_info()[1] if device == "cuda" else host_bytes)


def error_row(args: argparse.Namespace, device: str, error: BaseException) -> dict[str, Any]:
    """What is known of a budget that was refused."""
    return {
        "bench": "infer", "shape": args.shape, "tokens": args.tokens, "device": device,
        "device_budget_bytes": budget_bytes(args.device_budget, device),
        "error": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}", **provenance(device),
    }  # fmt: skip


def run_one(args: argparse.Namespace) -> int:
    """Both sides of one budget; 1 where the bits differ, REFUSED where the budget is too small."""
    from tierpage import _C, ConfigError

    device = args.device
    plain = None
    if args.plain_seconds is not None:
        plain = given_plain(args)
    elif not args.no_plain:
        plain = measure(args, device)
    if device == "cuda":
        torch.cuda.empty_cache()
    if args.no_plain or args.plain_seconds is not None:
        load_kernels(SHAPES[args.shape], args.tokens, device)
    rate = args.link_gb_per_s
    if rate is None or args.role == "plain":
        rate = best_links(_C, device).get("host_to_device", 0.0)
    if args.role == "plain":
        print(json.dumps({"plain": plain, "link_gb_per_s": rate}))
        return 0
    try:
        row = paged_row(args, device, plain, rate)
    except (torch.OutOfMemoryError, ConfigError) as error:  # tierpage's own OutOfMemoryError is one of the first
        print(json.dumps(error_row(args, device, error)))
        return REFUSED
    print(json.dumps(row))
    return 0 if row["bits_equal"] in (True, None) else 1


def run_child(arguments: list[str], timeout_seconds: float) -> tuple[int, dict[str, Any]]:
    """This script once more with further arguments, which go before earlier ones: exit code and last line."""
    command = [sys.executable, os.path.abspath(__file__), *sys.argv[1:], "--sweep=", *arguments]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=timeout_seconds, check=False)
    except subprocess.TimeoutExpired:
        return -1, {"error": f"no row within {timeout_seconds:.0f} seconds"}
    lines = done.stdout.splitlines()
    if not lines or not lines[-1].startswith("{"):
        return done.returncode, {"error": f"the process ended with code {done.returncode} and printed no row"}
    return done.returncode, json.loads(lines[-1])


def sweep(args: argparse.Namespace) -> int:
    """The plain side once, then each budget in a child, until one is refused; 1 where anything but that went wrong."""
    from tierpage.sizes import parse_size

    budgets = args.sweep.split(",")
    for budget in budgets:
        parse_size(budget, "device_budget")  # a slip of the pen shows before minutes are spent
    code, measured = run_child(["--role", "plain"], args.timeout_seconds)
    plain = measured.get("plain") or given_plain(args)
    if "error" in measured or plain["seconds"] is None:
        print(
            measured.get("error", "a sweep needs a plain side: give --plain-seconds with --no-plain"), file=sys.stderr
        )
        return code or 1
    weights = SHAPES[args.shape].parameters() * 2
    known = [
        f"--plain-seconds={plain['seconds']}", f"--working-set-bytes={max(plain['allocated_bytes_max'] - weights, 0)}",
        f"--link-gb-per-s={args.link_gb_per_s or measured['link_gb_per_s']}",
    ]  # fmt: skip
    if plain["digest"]:
        known.append(f"--plain-digest={plain['digest']}")
    worst = 0
    for budget in budgets:
        code, row = run_child([*known, f"--device-budget={budget}"], args.timeout_seconds)
        if "bench" not in row:
            wanted = argparse.Namespace(**{**vars(args), "device_budget": budget})
            row = error_row(wanted, args.device, RuntimeError(row["error"]))
        print(json.dumps(row), flush=True)
        if code == REFUSED:
            break
        worst = worst or code
    return 1 if worst else 0


def main() -> int:
    """Runs what was asked for; exit code 1 where the bits differ, 3 where the one budget was too small."""
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
    parser.add_argument("--plain-seconds", type=float, default=None, help="the all-in-VRAM side, measured before")
    parser.add_argument("--plain-digest", default=None, help="of its output; without it bits are not compared")
    parser.add_argument("--working-set-bytes", type=int, default=0, help="what it took above the weights")
    parser.add_argument("--sweep", default="", metavar="BUDGET,BUDGET,...", help="largest first")
    parser.add_argument("--timeout-seconds", type=float, default=300, help="of one budget of a sweep")
    parser.add_argument("--trace", default=None, help="write a Perfetto timeline here")
    parser.add_argument("--role", default="both", choices=("both", "plain"), help=argparse.SUPPRESS)
    add_cores(parser)
    args = parser.parse_args()
    hold_cores(args.cores)
    if args.sweep and args.trace:
        parser.error("a sweep has many timelines: give --trace with one budget")
    return sweep(args) if args.sweep else run_one(args)


if __name__ == "__main__":
    sys.exit(main())
