"""Numbers: what lives where, what was moved, what was waited for. Names and shape follow ``torch.cuda.memory_stats``."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tierpage import advice, native, notebook, touching
from tierpage.session import Session, current_or_none
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
Table = list[tuple[str, ...]]  # the first row is the heading
Part = str | Table
_LEVELS = (".current", ".peak", ".max")
_LEVEL_GROUPS = (
    "budget_bytes", "budget_seconds", "code_ring_bytes", "engaged", "locked_bytes", "ready_bytes", "reserved", "plan.",
    "recurrence.",
)  # fmt: skip
_NAMES_SHOWN = 10
_baseline: dict[str, Number] = {}
_baseline_owner: Session | None = None


def _accumulates(name: str) -> bool:
    return not name.endswith(_LEVELS) and not name.startswith(_LEVEL_GROUPS)


def _raw() -> dict[str, Number]:
    """Counters since ``enable``; those of the torch library count from the start of the process."""
    session = current_or_none()
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
    :func:`reset_accumulated_memory_stats`; names with ``seconds`` are seconds; the rest are counts.

    ``stall_seconds.total`` is the sum of ``stall_seconds.fault``, ``.copy_wait``, ``.map``, ``.eviction_wait`` and
    ``.host``; ``.allocate`` is its part in allocations. ``plan.*`` (bytes that the residency plan in force moves in each
    recurrence) and ``recurrence.*`` (what the last one did) are there while a plan is in force.

    ``compressed_bytes.host.current`` and ``.nvme`` are the bytes of coded copies there, ``uncompressed_bytes.*`` those
    of their pages. ``content_bytes.encode.bfloat16`` (``.float16``, ``.float32``, ``.other``) and
    ``coded_bytes.encode.*`` tell what codes make of a type; ``content_bytes.tag.NAME.current`` and
    ``stored_bytes.tag.NAME.current``, while pages are coded, what lies below of a tag.
    """
    session = current_or_none()
    stats = _raw()
    if session is not None and session is _baseline_owner:
        for name, start in _baseline.items():
            if name in stats:
                stats[name] -= start
    return OrderedDict(sorted(stats.items()))


def reset_peak_memory_stats() -> None:
    """Sets every ``.peak`` to its ``.current``, and the largest stall to zero. Does nothing while tierpage is off."""
    session = current_or_none()
    if session is not None:
        with native.translated():
            session.runtime.reset_peaks()


def reset_accumulated_memory_stats() -> None:
    """Restarts every total (bytes moved, faults, stall seconds, ...) from zero. Levels and peaks stay."""
    global _baseline, _baseline_owner
    _baseline_owner = current_or_none()
    _baseline = {name: value for name, value in _raw().items() if _accumulates(name)}
    if _baseline_owner is not None:
        with native.translated():
            _baseline_owner.runtime.reset_stalled_most()


@dataclass(frozen=True)
class Placement:
    """Where one tensor's storage lives. ``device``, ``host`` and ``nvme`` are the bytes with a valid copy there.

    ``checkpoint`` is that part of ``nvme`` whose copy is the file that the tensor was loaded from.
    """

    paged: bool
    bytes: int
    device: int = 0
    host: int = 0
    nvme: int = 0
    pinned: bool = False
    checkpoint: int = 0

    def __str__(self) -> str:
        if not self.paged:
            return f"{format_bytes(self.bytes)}, not paged"
        places = ", ".join(f"{tier} {format_bytes(getattr(self, tier))}" for tier in TIERS)
        source = f" (in its checkpoint {format_bytes(self.checkpoint)})" if self.checkpoint else ""
        return f"{format_bytes(self.bytes)}: {places}{source}{', pinned' if self.pinned else ''}"


def where(tensor: torch.Tensor) -> Placement:
    """Tells in which tiers a tensor's storage has valid bytes; moves nothing.

    A tensor that tierpage does not own gives ``paged=False``.

    Raises:
        TypeError: for anything but a tensor.
    """
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"where() takes a tensor, not {type(tensor).__name__}")
    storage = touching.storage_of(tensor)
    size = storage.nbytes() if storage is not None else 0
    session = current_or_none()
    addresses = session.addresses([tensor]) if session is not None else []
    if session is None or not addresses:
        return Placement(False, size)
    with native.translated():
        info = session.runtime.addresses_info(addresses)[0]
    if not info:
        return Placement(False, size)
    tiers = {tier: int(info[tier]) for tier in TIERS}
    return Placement(
        paged=True, bytes=int(info["bytes"]), pinned=bool(info["pinned"]), checkpoint=int(info["source"]), **tiers
    )


class Summary(str):
    """A text of lines and tables, which a notebook shows as such."""

    parts: tuple[Part, ...]

    def __new__(cls, parts: Sequence[Part]) -> Summary:
        lines = [line for part in parts for line in ([part] if isinstance(part, str) else format_table(part))]
        self = super().__new__(cls, "\n".join(lines))
        self.parts = tuple(parts)
        return self

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str(self),)  # whoever reads a pickle of it may have no tierpage

    def _repr_html_(self) -> str:
        return notebook.page_of(self.parts)


def memory_summary() -> str:
    """Text tables of tiers, links, stalls by cause and operator, predicted against measured, and what would have helped.

    For printing or for a report. Returns the text, prints nothing. As the last value of a notebook's cell it is shown
    as tables.
    """
    session = current_or_none()
    if session is None:
        return Summary(["tierpage is not enabled"])
    with native.translated():
        most = session.runtime.stalled_most()
    title = f"{session.config.device}:{session.config.device_index}"
    return summary_of(memory_stats(), title, most["operators"], most["tags"], most["overflows"])


def summary_of(
    stats: Mapping[str, Number],
    title: str,
    operators: Sequence[Mapping[str, Any]] = (),
    tags: Sequence[Mapping[str, Any]] = (),
    overflows: Sequence[Mapping[str, Any]] = (),
) -> Summary:
    """The text of :func:`memory_summary` for given statistics; ``operators`` and ``tags`` waited longest, longest first;
    ``overflows`` needed more than the device budget, most bytes first."""

    def size(name: str) -> str:
        return format_bytes(stats.get(name, 0))

    parts: list[Part] = [f"tierpage memory on {title}", tier_table(stats), ""]
    parts.append([("link", "bytes moved"), *((label, size(name)) for label, name in LINKS)])
    stalled, longest = stats.get("stall_seconds.total", 0.0), stats.get("stall_seconds.max", 0.0)
    parts += [
        "",
        f"live tensors {size('live_bytes.current')} (peak {size('live_bytes.peak')}), pinned {size('pinned_bytes.current')}, "
        f"dirty {size('dirty_bytes.current')}",
        f"faults {stats.get('faults.count', 0)}, stalled {stalled:.3f} s (longest {longest:.3f} s)",
        "prefetches {} issued, {} useful, {} late, {} wasted".format(
            *(stats.get(f"prefetch.{kind}", 0) for kind in ("issued", "useful", "late", "wasted"))
        ),
        _engaged(stats),
        f"requests beyond the device budget {stats.get('overflows.count', 0)} (at most {size('overflow_bytes.peak')} in RAM), "
        f"out-of-memory errors {stats.get('num_ooms', 0)}, storage errors {stats.get('storage_errors.count', 0)}",
    ]
    if stats.get("stuck_transfers.current"):
        parts.append(
            f"{stats['stuck_transfers.current']} transfers of {size('stuck_bytes.current')} hang, the oldest for "
            f"{stats['stuck_seconds.current']:.0f} s"
        )
    parts += [
        *_coded(stats),
        *_ratios(stats),
        *_written(stats),
        *_overflows(overflows),
        "",
        *_stalls(stats, operators, tags),
        "",
        *_predicted(stats),
    ]
    return Summary(parts)


def tier_table(stats: Mapping[str, Number]) -> Table:
    """Bytes in use, at most in use, and allowed, of each tier."""
    rows: Table = [("tier", "in use", "peak", "budget")]
    for tier in TIERS:
        names = (f"resident_bytes.{tier}.current", f"resident_bytes.{tier}.peak", f"budget_bytes.{tier}")
        budget = names[2] if names[2] in stats else f"{names[2]}.current"
        rows.append((tier, *(format_bytes(stats.get(name, 0)) for name in (*names[:2], budget))))
    return rows


def _engaged(stats: Mapping[str, Number]) -> str:
    times = stats.get("engagements.count", 0)
    now = "pages leave, or did lately" if stats.get("engaged", False) else "all fits, operators record no fences"
    return f"{now}; engaged {times} time{'' if times == 1 else 's'}"


def _overflows(known: Sequence[Mapping[str, Any]]) -> list[Part]:
    """Who used RAM as device memory, since ``enable``; nothing where nobody did."""
    if not known:
        return []
    rows: Table = [("operator beyond the device budget", "times", "used in RAM")]
    rows += [(row["name"], str(row["count"]), format_bytes(row["bytes"])) for row in known[:_NAMES_SHOWN]]
    return ["", rows]


def _coded(stats: Mapping[str, Number]) -> list[str]:
    """What coded pages saved; nothing where none was coded."""
    failures = sum(stats.get(f"code_failures.{way}", 0) for way in ("encode", "decode"))
    failed = [f"the coder failed {failures} times: config().in_force['compress_notice'] says why"] if failures else []
    if not stats.get("code_pages.encode") and not stats.get("code_pages.decode"):
        return failed
    ways = []
    for way, verb in (("encode", "coded"), ("decode", "decoded")):
        plain, code = stats.get(f"content_bytes.{way}", 0), stats.get(f"coded_bytes.{way}", 0)
        if plain:
            seconds = stats.get(f"code_seconds.{way}", 0.0)
            ways.append(f"{verb} {format_bytes(plain)} as {format_bytes(code)} ({code / plain:.2f}) in {seconds:.3f} s")
    up, down = (format_bytes(stats.get(f"saved_bytes.{way}", 0)) for way in ("up", "down"))
    return [f"{', '.join(ways)}; {up} did not have to come up, {down} did not have to go down", *failed]


def _ratios(stats: Mapping[str, Number]) -> list[Part]:
    """What codes make of each type of content and of what lies below of each tag; nothing where none was coded."""
    if not stats.get("code_pages.encode"):
        return []
    rows: Table = [("content", "bytes", "stored as", "ratio")]
    prefix = "content_bytes.encode."
    rows += [
        _ratio(f"{name[len(prefix) :]}, coded", stats[name], stats[f"coded_bytes.encode.{name[len(prefix) :]}"])
        for name in sorted(stats) if name.startswith(prefix) and stats[name]
    ]  # fmt: skip
    prefix, suffix = "content_bytes.tag.", ".current"
    tags = [name[len(prefix) : -len(suffix)] for name in stats if name.startswith(prefix) and name.endswith(suffix)]
    tags.sort(key=lambda tag: -stats[f"{prefix}{tag}{suffix}"])
    rows += [
        _ratio(f"tag {tag}, below", stats[f"{prefix}{tag}{suffix}"], stats[f"stored_bytes.tag.{tag}{suffix}"])
        for tag in tags[:_NAMES_SHOWN]
    ]
    return ["", rows]


def _ratio(name: str, content: Number, stored: Number) -> tuple[str, ...]:
    return name, format_bytes(content), format_bytes(stored), f"{stored / content:.2f}"


def _written(stats: Mapping[str, Number]) -> list[str]:
    """What wears the drives of the NVMe tier out; nothing where nothing was written."""
    if not stats.get("nvme_write_bytes.total") and "budget_bytes.nvme_write" not in stats:
        return []
    total, day = (format_bytes(stats.get(f"nvme_write_bytes.{name}", 0)) for name in ("total", "last_day.current"))
    line = f"written to NVMe {total}, in the last 24 hours {day}"
    budget = stats.get("budget_bytes.nvme_write")
    if budget is not None:
        hours = stats["budget_seconds.nvme_write"] / 3600
        used, over = stats["nvme_write_bytes.last_period.current"], stats["nvme_write_bytes.over_budget"]
        line += f"; {format_bytes(used)} of {format_bytes(budget)} for each {hours:g} hours"
        line += f", {format_bytes(over)} over it"
    return [line]


def _stalls(
    stats: Mapping[str, Number], operators: Sequence[Mapping[str, Any]], tags: Sequence[Mapping[str, Any]]
) -> list[Part]:
    total = stats.get("stall_seconds.total", 0.0)
    rows: Table = [("Stalls", "waits", "seconds", "share")]
    for cause in (*advice.CAUSES, "total"):
        seconds = stats.get(f"stall_seconds.{cause}", 0.0)
        count = str(stats.get(f"stall_count.{cause}", 0))
        rows.append((cause, count, f"{seconds:.3f}", f"{advice.share(seconds, total):.0%}"))
    parts: list[Part] = [rows]
    for what, known in (("operator", operators), ("tag", tags)):
        if known:
            parts += ["", _stalled_most(what, known)]
    return parts


def _stalled_most(what: str, known: Sequence[Mapping[str, Any]]) -> Table:
    rows: Table = [
        (f"{what} that waited", "waits", "seconds", "waited for", "predicted", "mostly", "would have helped")
    ]
    for row in known[:_NAMES_SHOWN]:
        rows.append(
            (
                str(row["name"]),
                str(row["count"]),
                f"{row['seconds']:.3f}",
                format_bytes(row["bytes"]),
                f"{advice.share(row['predicted_bytes'], row['bytes']):.0%}",
                advice.main_cause(row),
                advice.help_for(row),
            )
        )
    return rows


def _predicted(stats: Mapping[str, Number]) -> list[Part]:
    now = advice.measured(stats)
    rows: Table = [("Predicted against measured", "predicted", "measured")]
    rows.append(("uses that came as predicted", "100%", f"{advice.predicted_share(stats):.0%}"))
    for kind, value in advice.prefetch_shares(stats).items():
        rows.append((f"prefetches {kind}", "100%" if kind == "useful" else "0%", f"{value:.0%}"))
    for what in ("fetched", "written"):
        pair = advice.moved(stats, what)
        if pair is not None:
            rows.append((f"{what} in a recurrence", format_bytes(pair[0]), format_bytes(pair[1])))
    links: Table = [(f"link, in {now.of}", "bytes", "busy s", "of the time", "GB/s")]
    for link, label in advice.LINKS.items():
        size, busy = now.link_bytes[link], now.link_seconds[link]
        rate = f"{size / busy / 1e9:.2f}" if busy > 0 else "-"
        links.append((label, format_bytes(size), f"{busy:.3f}", f"{advice.share(busy, now.elapsed):.0%}", rate))
    parts: list[Part] = [
        rows,
        "",
        links,
        f"{now.of}: {now.elapsed:.3f} s, waited {now.waited:.3f} s, all else {now.computing:.3f} s",
    ]
    advised = advice.advise(stats)
    if advised:
        parts += ["", "What would have helped", *(f"- {line}" for line in advised)]
    return parts


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
