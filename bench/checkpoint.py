"""A model streamed from its checkpoint's file through budgets far below its size, beside what the disk can read.

    python bench/checkpoint.py --folder /data/bench --device cuda --shape 13b --layers 20 --dtype bfloat16
    python bench/checkpoint.py --folder /var/tmp/bench --device cpu --shape 3b --layers 3 --dtype float32 --tokens 4

Makes the checkpoint where it is missing (random weights; --keep leaves it there), then, in a process of its own, loads it
with tierpage.load, runs forwards and saves. Prints one JSON line: seconds of the load, to the first output and of each
forward, bytes read from the file in each and their rate, the rate of a plain direct read of the same file, the least that
a forward can read (the file without both budgets), the median forward against that and the better of the plain rates, the
rate of tierpage.save, beside that of a plain direct copy of the file, and what it added to the process's memory.
``--compare`` also runs the model all in the device's memory: its output must be equal, and its seconds are what the
computation takes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import mmap
import os
import re
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from infer import digest, make_tokens
from llama_shape import SHAPES, Decoder, Shape, build
from machine import add_cores, hold_cores, provenance, synchronize

REQUEST_BYTES = 4 * 2**20
THREADS = 8
GB = 1e9


def status_bytes(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    text = Path("/proc/self/status").read_text()
    return int(re.search(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)[1]) * 1024  # type: ignore[index]


def page_cache_bytes() -> int:
    """What the machine's page cache holds; other programs move it too."""
    return int(re.search(r"^Cached:\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)[1]) * 1024  # type: ignore[index]


def plain_read_rate(path: Path) -> float:
    """GB/s of reading the whole file past the page cache, eight requests of 4 MiB in flight."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    total = path.stat().st_size

    def read(worker: int) -> None:
        with mmap.mmap(-1, REQUEST_BYTES) as memory:
            for offset in range(worker * REQUEST_BYTES, total, THREADS * REQUEST_BYTES):
                os.preadv(descriptor, [memory], offset)

    start = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(read, range(THREADS)))
    seconds = time.perf_counter() - start
    os.close(descriptor)
    return total / seconds / GB


def plain_copy_rate(path: Path) -> float:
    """GB/s of copying the whole file past the page cache: threads that read a piece and write it."""
    source = os.open(path, os.O_RDONLY | os.O_DIRECT)
    other = path.with_name("copy")
    target = os.open(other, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_DIRECT, 0o600)
    total = path.stat().st_size

    def copy(worker: int) -> None:
        with mmap.mmap(-1, REQUEST_BYTES) as memory:
            for offset in range(worker * REQUEST_BYTES, total - REQUEST_BYTES, THREADS * REQUEST_BYTES):
                os.preadv(source, [memory], offset)
                os.pwritev(target, [memory], offset)

    try:
        start = time.perf_counter()
        os.posix_fallocate(target, 0, total)
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(copy, range(THREADS)))
        os.fsync(target)
        return total / (time.perf_counter() - start) / GB
    finally:
        os.close(source)
        os.close(target)
        other.unlink()


def shape_of(args: argparse.Namespace) -> Shape:
    shape = SHAPES[args.shape]
    return dataclasses.replace(shape, layers=args.layers or shape.layers)


def make_checkpoint(args: argparse.Namespace, path: Path) -> None:
    """Random weights, drawn on the device, kept in RAM, saved with tierpage off."""
    import tierpage

    model = build(shape_of(args), args.device, getattr(torch, args.dtype), home="cpu")
    tierpage.save(model, path)


def forwards(model: Decoder, args: argparse.Namespace, counted: Any) -> dict[str, Any]:
    """Seconds and bytes read of each forward, and a digest of the output."""
    tokens = make_tokens(model.shape, args.tokens, args.device)
    seconds, read, result = [], [], ""
    with torch.inference_mode():
        for _ in range(args.forwards):
            before = counted()
            synchronize(args.device)
            start = time.perf_counter()
            logits = model(tokens)
            synchronize(args.device)
            seconds.append(time.perf_counter() - start)
            read.append(counted() - before)
            result = digest(logits)
            del logits
    return {"seconds": seconds, "read": read, "digest": result}


def paged(args: argparse.Namespace, path: Path) -> dict[str, Any]:
    import tierpage

    tierpage.enable(
        args.nvme_path, device=args.device, device_budget=args.device_budget, host_budget=args.host_budget,
        nvme_budget=args.nvme_budget if args.nvme_path else None,
    )  # fmt: skip
    with torch.device("meta"):
        model = Decoder(shape_of(args))
    start = time.perf_counter()
    tierpage.load(model, path)
    load_seconds = time.perf_counter() - start
    run = forwards(model, args, lambda: tierpage.memory_stats()["fetch_bytes.source"])
    stats, budgets = tierpage.memory_stats(), tierpage.config()
    row: dict[str, Any] = {
        "load_seconds": round(load_seconds, 4),
        "first_output_seconds": round(load_seconds + run["seconds"][0], 3),
        "forward_seconds": [round(seconds, 3) for seconds in run["seconds"]],
        "read_gb": [round(count / GB, 3) for count in run["read"]],
        "read_gb_per_s": [
            round(count / seconds / GB, 2) for count, seconds in zip(run["read"], run["seconds"], strict=True)
        ],
        "budget_gb": (budgets.device_budget + budgets.host_budget) / GB,
        "spilled_bytes": stats["writeback_bytes.device_to_nvme"] + stats["writeback_bytes.host_to_nvme"],
        "digest": run["digest"],
    }
    if args.no_save:
        return row
    saved = path.with_name("saved.safetensors")
    resident, cached = status_bytes("VmHWM"), page_cache_bytes()
    start = time.perf_counter()
    tierpage.save(model, saved)
    seconds = time.perf_counter() - start
    row |= {
        "save_seconds": round(seconds, 3),
        "save_gb_per_s": round(path.stat().st_size / seconds / GB, 2),
        "save_added_peak_mb": round((status_bytes("VmHWM") - resident) / 1e6, 1),
        "save_added_page_cache_mb": round((page_cache_bytes() - cached) / 1e6, 1),
    }
    saved.unlink()
    return row


def plain(args: argparse.Namespace, path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    with torch.device("meta"):
        model = Decoder(shape_of(args))
    model.load_state_dict(load_file(path, device=args.device), assign=True)
    run = forwards(model, args, lambda: 0)
    return {"digest": run["digest"], "plain_forward_seconds": round(min(run["seconds"]), 3)}


def child(args: argparse.Namespace, what: str) -> dict[str, Any]:
    """One part in a process of its own: memory of one must not help or hinder the next."""
    command = [sys.executable, os.path.abspath(__file__), *sys.argv[1:], "--part", what]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode != 0:
        return {"error": run.stderr.strip().splitlines()[-1] if run.stderr.strip() else f"exit code {run.returncode}"}
    return dict(json.loads(run.stdout.strip().splitlines()[-1]))


def against_bound(row: dict[str, Any]) -> dict[str, Any]:
    """The median of the later half of the forwards, when the plan is settled, against the least that must be read."""
    rate = max(row["plain_read_gb_per_s"], row["plain_read_gb_per_s_after"])
    least = max(row["file_gb"] - row.pop("budget_gb"), 0.0)
    half = len(row["forward_seconds"]) // 2
    seconds = statistics.median(row["forward_seconds"][half:])
    return {
        "least_read_gb": round(least, 3), "bound_seconds": round(least / rate, 3), "median_seconds": round(seconds, 3),
        "ratio_to_bound": round(seconds * rate / least, 3) if least else None,
        "ratio_of_bytes": round(statistics.median(row["read_gb"][half:]) / least, 3) if least else None,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", required=True, type=Path, help="where the checkpoint lies or is made, on a local disk"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--shape", default="13b", choices=SHAPES)
    parser.add_argument("--layers", type=int, help="instead of the shape's own number")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--device-budget", default="4GiB")
    parser.add_argument("--host-budget", default="2GiB")
    parser.add_argument("--nvme-path", help="a third tier for what is written; none by default")
    parser.add_argument("--nvme-budget", default="8GiB")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--forwards", type=int, default=8)
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--keep", action="store_true", help="leave the checkpoint")
    parser.add_argument("--no-save", action="store_true")
    parser.add_argument("--part", choices=("make", "paged", "plain"), help=argparse.SUPPRESS)
    add_cores(parser)
    args = parser.parse_args()
    hold_cores(args.cores)
    path = args.folder / f"{args.shape}-{args.layers or 'all'}-{args.dtype}.safetensors"
    if args.part:
        row = {"paged": paged, "plain": plain}[args.part](args, path) if args.part != "make" else {}
        if args.part == "make":
            make_checkpoint(args, path)
        print(json.dumps(row))
        return 0
    args.folder.mkdir(parents=True, exist_ok=True)
    made = {} if path.exists() else child(args, "make")
    if "error" in made:
        print(json.dumps(made))
        return 1
    row = {"file_gb": round(path.stat().st_size / GB, 3), "plain_read_gb_per_s": round(plain_read_rate(path), 2)}
    row |= child(args, "paged")
    if args.compare:
        other = child(args, "plain")
        row["equal"] = other.pop("digest", None) == row.get("digest")
        row |= other
    row["plain_read_gb_per_s_after"] = round(plain_read_rate(path), 2)
    if "error" not in row:
        row |= against_bound(row)
        if not args.no_save:
            row["plain_copy_gb_per_s"] = round(plain_copy_rate(path), 2)
    row |= {
        "device_budget": args.device_budget,
        "host_budget": args.host_budget,
        "tokens": args.tokens,
        **provenance(args.device),
    }
    print(json.dumps(row))
    if not args.keep:
        path.unlink()
    return 1 if "error" in row or row.get("equal") is False else 0


if __name__ == "__main__":
    sys.exit(main())
