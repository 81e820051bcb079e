"""What a row says about the machine that made it: names, versions, the driver's figure, the links' rates."""

from __future__ import annotations

import platform
import time
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


def provenance(device: str) -> dict[str, str | None]:
    """Where and with what a row was made. Asks no device that the row did not use."""
    return {
        "tierpage_version": version_of("tierpage"),
        "torch_version": torch.__version__,
        "device_name": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
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
