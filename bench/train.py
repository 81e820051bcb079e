"""Training beyond the device budget, beside its bound and beside the same run all in VRAM.

    python bench/train.py --shape 3b --batch 4 --tokens 2048 --device-budget 16GiB [--hooks] [--no-recompute]
    python bench/train.py --shape 13b --batch 4 --tokens 1024 --device-budget 16GiB --lora 16

fp32 parameters, with --lora frozen bfloat16 ones and fp32 adapters, autocast bfloat16, AdamW(fused=True). Prints one JSON line: median step seconds, bytes moved a step,
the bound (the longest of compute, bytes up / rate, bytes down / rate, with the bytes that were moved and the rates that
the link has while both directions are busy), the driver's figure for the process, and whether losses and every parameter
equal the all-in-VRAM run bit for bit. The plain run is a child process; --plain-seconds gives its time without it.
Bits can only be compared where the kernels themselves repeat: use --deterministic for that (attention's backward adds
atomically otherwise), and leave it out for speed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from llama_shape import SHAPES, Shape, build
from lora import adapt
from machine import (
    Look,
    add_cores,
    best_links,
    duplex_links,
    hold_cores,
    look,
    process_device_bytes,
    provenance,
    synchronize,
    usage,
)


def make_steps(model: torch.nn.Module, hooks: bool):
    """Returns the function that applies the optimizer; with ``hooks`` each parameter steps as its gradient is ready."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not hooks:
        optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)

        def apply() -> None:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return apply
    optimizers = {p: torch.optim.AdamW([p], lr=1e-4, fused=True) for p in trained}

    def step_one(parameter: torch.Tensor) -> None:
        optimizers[parameter].step()
        optimizers[parameter].zero_grad(set_to_none=True)

    for parameter in trained:
        parameter.register_post_accumulate_grad_hook(step_one)
    return lambda: None


def checksums(model: torch.nn.Module) -> dict[str, int]:
    """Sum of every parameter's bits as integers, computed where it lives, one parameter at a time."""
    words = {2: torch.int16, 4: torch.int32}
    return {
        name: int(p.detach().view(words[p.element_size()]).to(torch.int64).sum())
        for name, p in model.named_parameters()
    }


def shape_of(args: argparse.Namespace) -> Shape:
    """The shape that was asked for, with fewer layers where that was asked for as well."""
    shape = SHAPES[args.shape]
    return dataclasses.replace(shape, layers=args.layers) if args.layers else shape


def make_batch(shape: Shape, batch: int, token_count: int, step: int, device: str) -> torch.Tensor:
    """The input of a step, the same in every run; one token longer, so that each has a successor."""
    generator = torch.Generator().manual_seed(1000 + step)
    return torch.randint(0, shape.vocabulary, (batch, token_count + 1), generator=generator).to(device)


def loss_of(model: Callable[[torch.Tensor], torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    """Cross entropy of each next token."""
    logits = model(tokens[:, :-1])
    return functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def time_steps(
    train_step: Callable[[torch.Tensor], torch.Tensor],
    shape: Shape,
    args: argparse.Namespace,
    device: str,
    mark: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:
    """Calls ``train_step`` warmup + repeat times; times, the losses that it returns, peak of the driver's figure.

    ``mark`` is called with "warm" before the first step that counts, and with "end" after the last.
    """
    times, losses, peak = [], [], 0
    for step in range(args.warmup + args.repeat):
        if step == args.warmup:
            mark("warm")
        tokens = make_batch(shape, args.batch, args.tokens, step, device)
        synchronize(device)
        start = time.perf_counter()
        loss = train_step(tokens)
        synchronize(device)
        times.append(time.perf_counter() - start)
        losses.append(loss.item())
        del loss
        if device == "cuda":
            peak = max(peak, process_device_bytes())
    mark("end")  # before the checksums bring every parameter up once more
    return {
        "seconds": statistics.median(times[args.warmup :]), "times": [round(t, 3) for t in times],
        "losses": losses, "device_bytes_max": peak,
    }  # fmt: skip


def run(args: argparse.Namespace, device: str, mark: Callable[[str], None] = lambda name: None) -> dict[str, Any]:
    """Builds the model where its tensors are made by default, and trains it: times, losses, sums of the parameters."""
    shape = shape_of(args)
    model = build(shape, device, torch.bfloat16 if args.lora else torch.float32, recompute=not args.no_recompute)
    if args.lora:
        adapt(model, args.lora, device)
    apply = make_steps(model, args.hooks)

    def train_step(tokens: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = loss_of(model, tokens)
        loss.backward()
        apply()
        return loss

    return {**time_steps(train_step, shape, args, device, mark), "sums": checksums(model)}


def describe_difference(plain: dict, paged: dict) -> str:
    """Where two runs part: the first differing loss, and how many parameters differ."""
    first = next(
        (i for i, pair in enumerate(zip(plain["losses"], paged["losses"], strict=True)) if len(set(pair)) > 1), None
    )
    names = [name for name, value in plain["sums"].items() if paged["sums"][name] != value]
    if first is None and not names:
        return "none"
    losses = (
        "no loss" if first is None else f"loss {first}: {plain['losses'][first]!r} against {paged['losses'][first]!r}"
    )
    return f"{losses}; {len(names)} of {len(plain['sums'])} parameters, {', '.join(names[:3])}"


def run_plain(arguments: list[str]) -> dict:
    """The same run without tierpage, in a child process."""
    command = [sys.executable, os.path.abspath(__file__), *arguments, "--role", "plain"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def bounds_of(moved: dict[str, float], links: dict[str, float], plain_seconds: float) -> dict[str, float]:
    """Seconds that a step cannot beat: of each direction of the link, and of the kernels."""
    up = moved["fetch_bytes.host_to_device"] / (links.get("host_to_device", 1.0) * 1e9)
    down = moved["writeback_bytes.device_to_host"] / (links.get("device_to_host", 1.0) * 1e9)
    return {"up": up, "down": down, "compute": plain_seconds}


def paged_row(args: argparse.Namespace, plain: dict[str, Any] | None) -> dict[str, Any]:
    """Trains under tierpage and puts the figures beside their bound."""
    import tierpage
    from tierpage import _C

    device = args.device
    links = best_links(_C, device)
    duplex = duplex_links(device, links)
    context = process_device_bytes() if device == "cuda" else 0
    tierpage.enable(
        nvme_path=args.nvme_path, device=device, device_budget=args.device_budget, host_budget=args.host_budget
    )
    looks: dict[str, Look] = {}
    paged = run(args, device, lambda name: looks.update({name: look()}))
    before, after = looks["warm"].stats, looks["end"].stats
    if args.trace:
        tierpage.export_trace(args.trace)
    difference = describe_difference(plain, paged) if plain else "not compared"
    moved = {k: (after[k] - before[k]) / args.repeat for k in after if k.startswith(("fetch_bytes", "writeback_bytes"))}
    plain_seconds = plain["seconds"] if plain else args.plain_seconds
    # What no tier above holds when most is alive is on NVMe then; where every page is rewritten in each step, that much is
    # written there in each step.
    budgets = tierpage.config().device_budget + tierpage.config().host_budget
    least_to_nvme = max(after["live_bytes.peak"] - budgets, 0) if args.nvme_path else 0
    bounds = bounds_of(moved, duplex, plain_seconds or 0.0)
    bound = max(bounds.values())
    return {
        "bench": "train", "shape": args.shape, "batch": args.batch, "tokens": args.tokens, "hooks": args.hooks, "lora": args.lora or None,
        "layers": shape_of(args).layers, "device": device,
        "recompute": not args.no_recompute, "deterministic": args.deterministic, "device_budget_bytes": tierpage.config().device_budget,
        "seconds": round(paged["seconds"], 3), "bound_seconds_of_moved_bytes": round(bound, 3),
        "ratio_to_bound": round(paged["seconds"] / bound, 3) if bound else None,
        "bound_seconds_by_part": {name: round(seconds, 3) for name, seconds in bounds.items()},
        "links_duplex_gb_per_s": {name: round(rate, 2) for name, rate in duplex.items()},
        "plain_seconds": round(plain_seconds, 3) if plain_seconds else None, "times": paged["times"],
        "bits_equal": difference == "none" if plain else None, "difference": difference,
        "bytes_per_step": {k: int(v) for k, v in moved.items() if v},
        "nvme_write_bytes_least": int(least_to_nvme),
        "stall_seconds": {k: round(after[k] - before[k], 2) for k in after if k.startswith("stall_seconds.") and "max" not in k},
        "driver_bytes_above_context": paged["device_bytes_max"] - context,
        "plain_driver_bytes": plain["device_bytes_max"] if plain else None,
        "prefetch": {k: after[k] for k in after if k.startswith("prefetch.")},
        "faults": after["faults.count"] - before["faults.count"], **usage(looks["warm"], looks["end"]),
        **provenance(device),
    }  # fmt: skip


def be_deterministic() -> None:
    """Chooses kernels that repeat themselves."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # The other attention kernels add their query gradients atomically.
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)


def main() -> int:
    """Runs both sides and prints the row; exit code 1 where the bits differ under --deterministic."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="tiny", choices=sorted(SHAPES))
    parser.add_argument("--layers", type=int, default=0, help="fewer layers than the shape has")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--device-budget", default="8MiB")
    parser.add_argument("--host-budget", default=None)
    parser.add_argument("--nvme-path", default=None)
    parser.add_argument("--hooks", action="store_true", help="optimizer step in post-accumulate-grad hooks")
    parser.add_argument("--no-recompute", action="store_true")
    parser.add_argument("--lora", type=int, default=0, metavar="RANK", help="train adapters of this rank only")
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--no-plain", action="store_true")
    parser.add_argument(
        "--plain-seconds", type=float, default=None, help="of the plain run, measured before; no bits then"
    )
    parser.add_argument("--twice-plain", action="store_true", help="only tell whether the plain run repeats itself")
    parser.add_argument("--trace", default=None)
    parser.add_argument(
        "--deterministic", action="store_true", help="deterministic kernels, so that bits can be compared"
    )
    parser.add_argument("--role", default="both", choices=("both", "plain"), help=argparse.SUPPRESS)
    add_cores(parser)
    args = parser.parse_args()
    hold_cores(args.cores)
    if args.deterministic:
        be_deterministic()
    if args.role == "plain":
        print(json.dumps(run(args, args.device)))
        return 0
    plain = None if args.no_plain or args.plain_seconds is not None else run_plain(sys.argv[1:])
    if args.twice_plain:
        print(json.dumps({"plain_against_plain": describe_difference(plain, run_plain(sys.argv[1:]))}))
        return 0
    row = paged_row(args, plain)
    print(json.dumps(row))
    if plain is None or not args.deterministic:
        return 0
    return 0 if row["bits_equal"] else 1


if __name__ == "__main__":
    sys.exit(main())
