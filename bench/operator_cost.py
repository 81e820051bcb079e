"""What an operator costs the calling thread beyond plain torch, while everything fits.

    python bench/operator_cost.py --device cpu [--hook on]
    python bench/operator_cost.py --device cuda

One small addition, in inference mode, in three ways: *plain* before tierpage is imported; *seen* with it, on small tensors,
which are not paged; *paged* with it, one argument being a view of a paged tensor of ``--weight-kib``. Prints one JSON line:
nanoseconds of the thread's processor time an operator, the best round each, and how much the last two are above the first.
On CUDA this is the launch; the device is waited for between rounds only.

The storage hook of torch 2.13 is off unless asked for: it costs extra with each paged operator, and 2.11 has none. Other
programs on the machine disturb the caches even of a thread that is alone on its processor: look at several rows.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable

import torch

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from machine import add_cores, hold_cores, provenance, synchronize

WEIGHTS = 40  # paged tensors that take turns, as the layers of a model do


def best_nanoseconds(round_of: Callable[[], None], operators: int, rounds: int, device: str) -> float:
    """Processor time of this thread for one of the round's operators, in the round that took least."""
    best = float("inf")
    for _ in range(rounds):
        synchronize(device)
        start = time.thread_time_ns()
        round_of()
        best = min(best, (time.thread_time_ns() - start) / operators)
    synchronize(device)
    return best


def make_rounds(device: str, weight_kib: int, turns: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """Two rounds of WEIGHTS * turns additions: on small tensors alone, and on parts of large ones."""
    small = torch.zeros(8, device=device)
    parts = [torch.zeros(weight_kib * 256, device=device)[:8] for _ in range(WEIGHTS)]
    smalls = [small] * WEIGHTS

    def add_to(tensors: list[torch.Tensor]) -> None:
        for _ in range(turns):
            for tensor in tensors:
                torch.add(tensor, small)

    return (lambda: add_to(smalls)), (lambda: add_to(parts))


def set_hook(on: bool) -> None:
    """Switches the storage hook; nothing to switch off before torch 2.13."""
    import ctypes

    from tierpage import native

    library = ctypes.PyDLL(str(native.find_libraries()[native.torch_minor()]))
    if library.tierpage_torch_set_option(b"materializer", int(on)) != 0:
        raise SystemExit("this torch has no storage hook (it came with 2.13): leave out --hook")


def main() -> int:
    """Measures and prints the row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--weight-kib", type=int, default=4096, help="size of each paged tensor (default 4096)")
    parser.add_argument("--turns", type=int, default=100, help=f"a round has {WEIGHTS} operators a turn (default 100)")
    parser.add_argument("--rounds", type=int, default=40, help="the best of so many counts (default 40)")
    parser.add_argument("--hook", choices=("on", "off"), default="off")
    add_cores(parser)
    args = parser.parse_args()
    hold_cores(args.cores)
    torch.set_num_threads(1)
    operators = WEIGHTS * args.turns

    with torch.inference_mode():
        small_round, part_round = make_rounds(args.device, args.weight_kib, args.turns)
        plain = best_nanoseconds(small_round, operators, args.rounds, args.device)
        plain_parts = best_nanoseconds(part_round, operators, args.rounds, args.device)
        del small_round, part_round

        import tierpage

        tierpage.enable(
            device=args.device, device_budget=2**30 + 2 * WEIGHTS * args.weight_kib * 1024, host_budget="64MiB"
        )
        set_hook(args.hook == "on")
        small_round, part_round = make_rounds(args.device, args.weight_kib, args.turns)
        seen = best_nanoseconds(small_round, operators, args.rounds, args.device)
        before = tierpage.memory_stats()
        paged = best_nanoseconds(part_round, operators, args.rounds, args.device)
        after = tierpage.memory_stats()

    if after["operators.paged"] - before["operators.paged"] != operators * args.rounds or after["engaged"]:
        raise SystemExit("the operators were not what was to be measured: too small a weight, or too little memory?")
    row = {
        "bench": "operator_cost", "device": args.device, "weight_kib": args.weight_kib, "hook": args.hook,
        "plain_ns": round(plain), "plain_parts_ns": round(plain_parts), "seen_ns": round(seen), "paged_ns": round(paged),
        "seen_more_ns": round(seen - plain), "paged_more_ns": round(paged - plain_parts), **provenance(args.device),
    }  # fmt: skip
    print(json.dumps(row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
