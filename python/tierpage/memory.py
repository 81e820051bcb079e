"""Numbers: what lives where, what was moved, what was waited for. Names and shape follow ``torch.cuda.memory_stats``."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from tierpage import api, native, touching
from tierpage.system import format_bytes

TIERS = ("device", "host", "nvme")
LINKS = (
    ("host to device", "fetch_bytes.host_to_device"),
    ("nvme to host", "fetch_bytes.nvme_to_host"),
    ("nvme to device", "fetch_bytes.nvme_to_device"),
    ("device to host", "writeback_bytes.device_to_host"),
    ("device to nvme", "writeback_bytes.device_to_nvme"),
    ("host to nvme", "writeback_bytes.host_to_nvme"),
)
Number = int | float
_LEVELS = (".current", ".peak", ".max")
_LEVEL_GROUPS = ("budget_bytes", "reserved")
_baseline: dict[str, Number] = {}
_baseline_owner: object | None = None


def _accumulates(name: str) -> bool:
    return not name.endswith(_LEVELS) and not name.startswith(_LEVEL_GROUPS)


def _raw() -> dict[str, Number]:
    """Counters since ``enable``; those of the torch library count from the start of the process."""
    session = api.current_or_none()
    if session is None:
        return {}
    with native.translated():
        stats: dict[str, Number] = {
            name: value for name, value in session.runtime.stats().items() if not isinstance(value, str)
        }
    stats.update(session.library.counters())
    return stats


def memory_stats() -> OrderedDict[str, Number]:
    """Statistics by dotted name, sorted; empty while tierpage is off.

    Bytes end in ``.current`` and ``.peak`` (levels) or are totals since ``enable`` or the last
    :func:`reset_accumulated_memory_stats`; ``stall_seconds.*`` are seconds; the rest are counts.
    """
    session = api.current_or_none()
    stats = _raw()
    if session is not None and session is _baseline_owner:
        for name, start in _baseline.items():
            if name in stats:
                stats[name] -= start
    return OrderedDict(sorted(stats.items()))


def reset_peak_memory_stats() -> None:
    """Sets every ``.peak`` to its ``.current``, and the largest stall to zero. Does nothing while tierpage is off."""
    session = api.current_or_none()
    if session is not None:
        with native.translated():
            session.runtime.reset_peaks()


def reset_accumulated_memory_stats() -> None:
    """Restarts every total (bytes moved, faults, stall seconds, ...) from zero. Levels and peaks stay."""
    global _baseline, _baseline_owner
    _baseline_owner = api.current_or_none()
    _baseline = {name: value for name, value in _raw().items() if _accumulates(name)}


@dataclass(frozen=True)
class Placement:
    """Where one tensor's storage lives. ``device``, ``host`` and ``nvme`` are the bytes with a valid copy there."""

    paged: bool
    bytes: int
    device: int = 0
    host: int = 0
    nvme: int = 0
    pinned: bool = False

    def __str__(self) -> str:
        if not self.paged:
            return f"{format_bytes(self.bytes)}, not paged"
        places = ", ".join(f"{tier} {format_bytes(getattr(self, tier))}" for tier in TIERS)
        return f"{format_bytes(self.bytes)}: {places}{', pinned' if self.pinned else ''}"


def where(tensor: torch.Tensor) -> Placement:
    """Tells in which tiers a tensor's storage has valid bytes; moves nothing.

    Raises TypeError for anything but a tensor. A tensor that tierpage does not own gives ``paged=False``.
    """
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"where() takes a tensor, not {type(tensor).__name__}")
    storage = touching.storage_of(tensor)
    size = storage.nbytes() if storage is not None else 0
    session = api.current_or_none()
    addresses = session.addresses([tensor]) if session is not None else []
    if session is None or not addresses:
        return Placement(False, size)
    with native.translated():
        info = session.runtime.addresses_info(addresses)[0]
    if not info:
        return Placement(False, size)
    return Placement(
        True, int(info["bytes"]), int(info["device"]), int(info["host"]), int(info["nvme"]), bool(info["pinned"])
    )


def memory_summary() -> str:
    """A text table of tiers, links, faults and stalls, for printing or for a report. Returns it, prints nothing."""
    session = api.current_or_none()
    if session is None:
        return "tierpage is not enabled"
    return summary_of(memory_stats(), f"{session.config.device}:{session.config.device_index}")


def summary_of(stats: Mapping[str, Number], title: str) -> str:
    """The text of :func:`memory_summary` for given statistics."""

    def size(name: str) -> str:
        return format_bytes(stats.get(name, 0))

    rows = [("tier", "in use", "peak", "budget")]
    for tier in TIERS:
        names = (f"resident_bytes.{tier}.current", f"resident_bytes.{tier}.peak", f"budget_bytes.{tier}")
        budget = names[2] if names[2] in stats else f"{names[2]}.current"
        rows.append((tier, size(names[0]), size(names[1]), size(budget)))
    lines = [f"tierpage memory on {title}", *format_table(rows), ""]
    lines += format_table([("link", "bytes moved"), *((label, size(name)) for label, name in LINKS)])
    stalled, longest = stats.get("stall_seconds.total", 0.0), stats.get("stall_seconds.max", 0.0)
    lines += [
        "",
        f"live tensors {size('live_bytes.current')} (peak {size('live_bytes.peak')}), pinned {size('pinned_bytes.current')}, "
        f"dirty {size('dirty_bytes.current')}",
        f"faults {stats.get('faults.count', 0)}, stalled {stalled:.3f} s (longest {longest:.3f} s)",
        "prefetches {} issued, {} useful, {} late, {} wasted".format(
            *(stats.get(f"prefetch.{kind}", 0) for kind in ("issued", "useful", "late", "wasted"))
        ),
        f"out-of-memory errors {stats.get('num_ooms', 0)}, storage errors {stats.get('storage_errors.count', 0)}",
    ]
    return "\n".join(lines)


def format_table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines of a plain text table; the first row is the heading, the first column is text, the others are numbers."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for number, row in enumerate(rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
        if number == 0:
            lines.append("  ".join("-" * width for width in widths))
    return lines
