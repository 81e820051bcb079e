"""Peers on the models, inputs and device cap of bench/infer.py and bench/train.py.

    python bench/peers/run.py infer --shape 13b --tokens 2048 --device-budget 16GiB [--only double_buffer accelerate_cpu]
    python bench/peers/run.py train --shape 3b --batch 4 --tokens 2048 --device-budget 16GiB [--no-recompute]
    python bench/peers/run.py list

Prints one JSON line a peer: median seconds after warm-up, the driver's figure for the process, whether the result equals
the plain run's, the cap that was in force. A peer whose library is missing prints a row with "skipped", one that fails
a row with "error". Each runs in a process of its own, under torch.cuda.set_per_process_memory_fraction; the plain run,
the first row, has no cap. ``--plain FILE`` keeps the plain run's result for later calls.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from infer import load_kernels, make_tokens, time_forwards
from llama_shape import SHAPES
from machine import add_cores, hold_cores, process_device_bytes, provenance, version_of
from train import be_deterministic, describe_difference, time_steps

from peers.job import Job, Skipped, job_of
from peers.registry import PEERS, PLAIN, Peer, chosen

REPEATS_MIN = 3
# What makes two plain runs the same run.
PLAIN_KEYS = (
    "side",
    "shape",
    "layers",
    "tokens",
    "batch",
    "no_recompute",
    "device",
    "deterministic",
    "warmup",
    "repeat",
)


def cap_device(job: Job) -> None:
    """Holds this process to the budget that tierpage would get."""
    if job.cuda:
        total_bytes = torch.cuda.mem_get_info()[1]
        torch.cuda.set_per_process_memory_fraction(min(1.0, job.budget_bytes / total_bytes))


def measure(peer: Peer, job: Job, args: argparse.Namespace) -> dict[str, Any]:
    """Prepares the peer in this process and times it."""
    prepare = peer.prepare()
    if peer.side == "infer":
        load_kernels(job.shape, job.tokens, job.device)
    context_bytes = process_device_bytes() if job.cuda else 0
    if peer.capped:
        cap_device(job)
    ready = prepare(job)
    gc.collect()
    if job.cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    if peer.side == "infer":
        out = time_forwards(ready, make_tokens(job.shape, job.tokens, job.device), args, job.device)
    else:
        out = time_steps(ready.step, job.shape, args, job.device)
        out["sums"] = {} if peer.stale else ready.sums()
    out["driver_bytes_above_context"] = out.pop("device_bytes_max") - context_bytes
    out["allocated_bytes_max"] = torch.cuda.max_memory_allocated() if job.cuda else 0
    out["reserved_bytes_max"] = torch.cuda.max_memory_reserved() if job.cuda else 0
    return out


def child(peer: Peer, args: argparse.Namespace) -> dict[str, Any]:
    """What one peer has to say: figures, or why there are none."""
    if version_of(peer.distribution) is None:
        return {"skipped": f"{peer.distribution} is not installed"}
    if peer.needs_cuda and args.device != "cuda":
        return {"skipped": "it needs a CUDA device"}
    try:
        return measure(peer, job_of(args, Path(args.folder)), args)
    except Skipped as reason:
        return {"skipped": str(reason)}
    except ImportError as error:
        return {"skipped": f"{peer.distribution} cannot be imported: {error}"}
    except Exception as error:  # whatever a peer does must cost its own row only
        if not isinstance(error, torch.OutOfMemoryError):
            traceback.print_exc()
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"}


def run_child(peer: Peer, args: argparse.Namespace) -> dict[str, Any]:
    """Measures a peer in a process of its own; its output goes to stderr, its result through a file.

    The folder is made here, so that it goes even where the process has to be killed.
    """
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        result = Path(folder) / "result.json"
        command = [
            sys.executable, os.path.abspath(__file__), *sys.argv[1:], "--budget-bytes", str(args.budget_bytes),
            "--role", peer.name, "--result", str(result), "--folder", folder,
        ]  # fmt: skip
        failure = f"no result within {args.timeout_seconds:.0f} seconds"
        try:
            code = subprocess.run(command, stdout=sys.stderr, timeout=args.timeout_seconds, check=False).returncode
            failure = f"the process ended with code {code} and left no result"
        except subprocess.TimeoutExpired:
            pass
        return json.loads(result.read_text()) if result.is_file() else {"error": failure}


def compare(peer: Peer, result: dict[str, Any], plain: dict[str, Any] | None) -> dict[str, Any]:
    """Whether a peer computed what the plain run computed."""
    if plain is None or "seconds" not in result:
        return {}
    if peer.side == "infer":
        return {"bits_equal": result["digest"] == plain["digest"]}
    apart = max(abs(a - b) for a, b in zip(plain["losses"], result["losses"], strict=True))
    if peer.stale:
        return {"bits_equal": "stale by design", "loss_difference_max": apart}
    difference = describe_difference(plain, result)
    return {"bits_equal": difference == "none", "difference": difference, "loss_difference_max": apart}


def row_of(
    peer: Peer, result: dict[str, Any], plain: dict[str, Any] | None, args: argparse.Namespace
) -> dict[str, Any]:
    """The line that is printed."""
    capped = peer.capped and args.device == "cuda"
    row: dict[str, Any] = {
        "bench": args.side, "peer": peer.name, "library": peer.distribution,
        "library_version": version_of(peer.distribution), "shape": args.shape, "tokens": args.tokens,
        "device": args.device, "device_budget_bytes": args.budget_bytes if peer.capped else None,
        "cap": "set_per_process_memory_fraction" if capped else "none",
    }  # fmt: skip
    if args.side == "train":
        row.update(batch=args.batch, recompute=not args.no_recompute, hooks=False, deterministic=args.deterministic)
        row["layers"] = args.layers or SHAPES[args.shape].layers
    shown = {name: value for name, value in result.items() if name not in ("sums", "digest", "provenance")}
    if "seconds" in shown:
        shown["seconds"] = round(shown["seconds"], 4)
    row.update(shown, **compare(peer, result, plain))
    row["plain_seconds"] = round(plain["seconds"], 4) if plain else None
    return {**row, "note": peer.note, **result.get("provenance", {})}


def plain_result(args: argparse.Namespace) -> dict[str, Any] | None:
    """The plain run's result: from the file that keeps it, else measured; None where it is not wanted."""
    if args.no_plain:
        return None
    wanted = {name: getattr(args, name) for name in PLAIN_KEYS}
    if args.plain and args.plain.is_file():
        kept = json.loads(args.plain.read_text())
        if kept["of"] != wanted:
            raise SystemExit(f"{args.plain} keeps another run, {kept['of']}: name another file, or delete it")
        return kept["result"]
    result = run_child(PLAIN[args.side], args)
    print(json.dumps(row_of(PLAIN[args.side], result, None, args)), flush=True)
    if "seconds" not in result:
        return None
    if args.plain:
        args.plain.write_text(json.dumps({"of": wanted, "result": result}))
    return result


def parse() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", choices=("infer", "train", "list"))
    parser.add_argument("--only", nargs="+", default=[], metavar="PEER")
    parser.add_argument("--shape", default="tiny", choices=sorted(SHAPES))
    parser.add_argument("--layers", type=int, default=0, help="fewer layers than the shape has")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=4, help="train only")
    parser.add_argument("--no-recompute", action="store_true", help="train only")
    parser.add_argument(
        "--deterministic", action="store_true", help="deterministic kernels, so that bits can be compared"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--device-budget", default="64MiB", help="cap of each peer")
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument(
        "--folder", default=None, help="on a local disk, for peers that offload to it; default: the temporary one"
    )
    parser.add_argument("--plain", type=Path, default=None, metavar="FILE", help="keeps the plain run's result")
    parser.add_argument("--no-plain", action="store_true", help="compare with nothing")
    parser.add_argument("--timeout-seconds", type=float, default=300, help="of one peer")
    parser.add_argument("--role", default="", help=argparse.SUPPRESS)
    parser.add_argument("--budget-bytes", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, default=None, help=argparse.SUPPRESS)
    add_cores(parser)
    args = parser.parse_args()
    hold_cores(args.cores)
    if args.repeat < REPEATS_MIN:
        parser.error(f"--repeat must be at least {REPEATS_MIN}")
    if args.side == "infer" and args.layers:
        parser.error("bench/infer.py has no --layers: its rows could not be told from these")
    if args.side != "list":
        try:
            chosen(args.side, args.only)
        except ValueError as error:
            parser.error(str(error))
    return args


def main() -> int:
    """Prints the rows; exit code 0 whatever the peers did, for a row says it."""
    args = parse()
    if args.side == "list":
        for peer in PEERS:
            print(
                f"{peer.side:5}  {peer.name:17}  {peer.distribution} {version_of(peer.distribution) or 'missing'}  {peer.note}"
            )
        return 0
    if args.role:
        if args.deterministic:
            be_deterministic()
        peer = PLAIN[args.side] if args.role == "plain" else chosen(args.side, [args.role])[0]
        result = {**child(peer, args), "provenance": provenance(args.device)}
        args.result.write_text(json.dumps(result))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)  # some libraries wait for their threads or groups for ever
    from tierpage.sizes import parse_size  # here, so that no peer's process loads tierpage

    args.budget_bytes = parse_size(args.device_budget, "device_budget", fraction_allowed=False).count
    plain = plain_result(args)
    for peer in chosen(args.side, args.only):
        print(json.dumps(row_of(peer, run_child(peer, args), plain, args)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
