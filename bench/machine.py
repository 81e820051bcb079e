"""What a row says about the machine that made it: names, versions, cores, the driver's figure, the links' rates, and what
its processor and its links did meanwhile."""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import time
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

DUPLEX_BYTES = 64 * 2**20  # a copy of this size runs at the link's rate
DUPLEX_COPIES = 24  # of each direction: some 30 ms a look on PCIe 5


def synchronize(device: str) -> None:
    """Waits for the device; nothing to do on the host device."""
    if device == "cuda":
        torch.cuda.synchronize()


def process_device_bytes() -> int:
    """Device memory of this process as the driver reports it (whole-device figure; nothing else runs there)."""
    free, total = torch.cuda.mem_get_info()
    return total - free


def version_of(distribution: str) -> str | None:
    """Version of an installed package, None where it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def add_cores(parser: argparse.ArgumentParser) -> None:
    """Adds ``--cores``; give it to hold_cores before anything runs."""
    parser.add_argument("--cores", type=int, default=0, metavar="N", help="hold the process to so many (default: all)")


def hold_cores(count: int) -> None:
    """Holds this process, threads and children that begin later included, to ``count`` of its cores; 0: to all of them."""
    if count < 0:
        raise SystemExit("--cores: give a positive number")
    if count > 0:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])
        torch.set_num_threads(min(torch.get_num_threads(), count))


def thread_seconds() -> Counter[str]:
    """Processor seconds of this process so far by the name of the thread; of threads that live."""
    ticks = os.sysconf("SC_CLK_TCK")
    seconds: Counter[str] = Counter()
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/stat") as file:
                name, _, rest = file.read().partition("(")[2].rpartition(")")
        except FileNotFoundError:  # it has ended meanwhile
            continue
        words = rest.split()
        seconds[name] += (int(words[11]) + int(words[12])) / ticks  # in user and in system mode: proc(5)
    return seconds


@dataclasses.dataclass(frozen=True)
class Look:
    """What had been moved, waited for and computed at one moment."""

    stats: dict[str, Any]
    threads: Counter[str]
    at: float


def look() -> Look:
    """Now; paging is on."""
    import tierpage

    return Look(tierpage.memory_stats(), thread_seconds(), time.perf_counter())


def usage(before: Look, after: Look) -> dict[str, dict[str, float]]:
    """Of the time between two looks: the share in which each direction of the link was idle, the processor seconds of each
    thread that used some, by its name, and what the pager's thread spent its time on."""
    elapsed = after.at - before.at
    idle = {}
    for way in ("to_device", "to_host"):
        name = f"link_seconds.{way}"
        idle[way] = round(max(0.0, 1 - (after.stats[name] - before.stats[name]) / elapsed), 3)
    threads = after.threads - before.threads
    return {
        "idle_share": idle,
        "processor_seconds": {name: round(seconds, 3) for name, seconds in threads.most_common() if seconds > 0},
        "pager_thread": {
            name.partition(".")[2]: round(after.stats[name] - before.stats[name], 3)
            for name in after.stats
            if name.startswith("pager_thread_")
        },
        "codes": {
            name: round(after.stats[name] - before.stats[name], 3)
            for name in after.stats
            if name.startswith(("code_", "content_bytes.", "coded_bytes.")) and after.stats[name] != before.stats[name]
        },
    }


def provenance(device: str) -> dict[str, Any]:
    """Where and with what a row was made. Asks no device that the row did not use."""
    return {
        "tierpage_version": version_of("tierpage"),
        "torch_version": torch.__version__,
        "device_name": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "date": time.strftime("%Y-%m-%d"),
    }


def best_links(native: Any, device: str) -> dict[str, float]:
    """The links' rates in GB/s, the best of three looks: a look is short, and a machine may have other tenants."""
    looks = [native.measure_links(device) for _ in range(3)]
    return {name: max(look[name] for look in looks) for name in looks[0]}


def duplex_look() -> tuple[float, float]:
    """GB/s up and down while both directions of the CUDA device's link are busy.

    The direction that ends first ends the look: what the other one copies alone would flatter it.
    """
    up_source, down_target = (torch.empty(DUPLEX_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2))
    up_target, down_source = (torch.empty(DUPLEX_BYTES, dtype=torch.uint8, device="cuda") for _ in range(2))
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    marks: list[list[torch.cuda.Event]] = [[], []]
    torch.cuda.synchronize()
    for _ in range(DUPLEX_COPIES):
        for stream, target, source, row in zip(
            streams, (up_target, down_target), (up_source, down_source), marks, strict=True
        ):
            with torch.cuda.stream(stream):
                if not row:
                    row.append(torch.cuda.Event(enable_timing=True))
                    row[0].record()
                target.copy_(source, non_blocking=True)
                row.append(torch.cuda.Event(enable_timing=True))
                row[-1].record()
    torch.cuda.synchronize()
    rates = []
    until_ms = min(marks[0][0].elapsed_time(row[-1]) for row in marks)
    for row in marks:
        ends_ms = [row[0].elapsed_time(mark) for mark in row[1:]]
        done = max(1, sum(marks[0][0].elapsed_time(mark) <= until_ms for mark in row[1:]))
        rates.append(done * DUPLEX_BYTES / ends_ms[done - 1] / 1e6)
    return rates[0], rates[1]


def duplex_links(device: str, one_way: dict[str, float]) -> dict[str, float]:
    """Rates in GB/s of the two directions while both are busy, the best of three looks.

    ``_C.measure_links`` looks at one direction at a time. The host device has no such link: its rates are those.
    """
    if device != "cuda":
        return {name: one_way[name] for name in ("host_to_device", "device_to_host") if name in one_way}
    # The look with the largest sum as a whole: the best of each direction might not go together.
    up, down = max((duplex_look() for _ in range(3)), key=sum)
    torch.cuda.empty_cache()
    return {"host_to_device": up, "device_to_host": down}
