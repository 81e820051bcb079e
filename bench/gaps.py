"""Where the link to the device was idle in a trace of ``export_trace``, and what else went on meanwhile.

    python bench/infer.py --shape 13b --tokens 1 --device-budget 16GiB --no-plain --trace trace.json
    python bench/gaps.py trace.json [--last SECONDS]

A link counts as idle while no fetch is under way: from the last byte of one to the first piece of the next. For the idle
time it prints how much of it passed inside calls that map or unmap, how long these calls take, and how long the gaps are.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
from typing import Any

Span = tuple[float, float]  # microseconds


def union(spans: list[Span]) -> list[Span]:
    """The same times, without overlaps, in order."""
    out: list[Span] = []
    for start, end in sorted(spans):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((start, end))
    return out


def gaps_of(busy: list[Span], begin: float, end: float) -> list[Span]:
    """What of [begin, end] lies outside of `busy`, which is in order and without overlaps."""
    out, at = [], begin
    for first, last in busy:
        if first > at:
            out.append((at, min(first, end)))
        at = max(at, last)
    return [(a, b) for a, b in [*out, (at, end)] if b > a]


def overlap(first: list[Span], second: list[Span]) -> float:
    """Microseconds that are in both lists, each in order and without overlaps."""
    total, j = 0.0, 0
    for start, end in first:
        while j < len(second) and second[j][1] <= start:
            j += 1
        i = j
        while i < len(second) and second[i][0] < end:
            total += max(0.0, min(end, second[i][1]) - max(start, second[i][0]))
            i += 1
    return total


def quantiles(values: list[float]) -> str:
    values = sorted(values)
    return " ".join(
        f"{share:.0%}: {values[min(len(values) - 1, int(share * len(values)))]:.0f}" for share in (0.1, 0.5, 0.9, 0.99)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace")
    parser.add_argument("--last", type=float, default=1.0, help="seconds before the last fetch that are looked at")
    args = parser.parse_args()
    with (gzip.open if args.trace.endswith(".gz") else open)(args.trace, "rb") as file:
        events: list[dict[str, Any]] = [event for event in json.load(file)["traceEvents"] if event.get("ph") == "X"]
    fetches = [(event["ts"], event["ts"] + event["dur"]) for event in events if event["name"] == "host_to_device"]
    if not fetches:
        raise SystemExit(f"{args.trace}: no page was fetched")
    end = max(last for _, last in fetches)
    begin = max(end - args.last * 1e6, min(first for first, _ in fetches))
    idle = gaps_of(union([span for span in fetches if span[1] > begin]), begin, end)
    idle_us = sum(b - a for a, b in idle)
    print(
        f"{(end - begin) / 1e6:.3f} s, link idle {idle_us / (end - begin):.1%} in {len(idle)} gaps, us {quantiles([b - a for a, b in idle] or [0.0])}"
    )
    for name in ("map", "unmap", "create", "release"):
        spans = [(e["ts"], e["ts"] + e["dur"]) for e in events if e["name"] == name and begin <= e["ts"] < end]
        if not spans:
            continue
        lengths = [b - a for a, b in spans]
        print(
            f"  {name:8} {len(spans):6} calls, mean {statistics.mean(lengths):.0f} us, {quantiles(lengths)}; "
            f"{sum(lengths) / 1e6:.3f} s in all, {overlap(idle, union(spans)) / max(idle_us, 1e-9):.0%} of the idle time"
        )
    waits = union(
        [(e["ts"], e["ts"] + e["dur"]) for e in events if e["name"].startswith("stall") and begin <= e["ts"] < end]
    )
    print(
        f"  waits    {sum(b - a for a, b in waits) / 1e6:.3f} s, {overlap(idle, waits) / max(idle_us, 1e-9):.0%} of the idle time"
    )
    causes: dict[str, float] = {}
    for event in events:
        if event["name"].startswith("stall") and begin <= event["ts"] < end:
            for key, value in event["args"].items():
                if key.endswith(" us"):
                    causes[key[:-3]] = causes.get(key[:-3], 0.0) + value
    print(
        "  of which",
        ", ".join(f"{cause} {value / 1e6:.3f} s" for cause, value in sorted(causes.items(), key=lambda row: -row[1])),
    )


if __name__ == "__main__":
    main()
