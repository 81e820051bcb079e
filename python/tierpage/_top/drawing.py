"""Figures as lines of text. Pure: what the lines stand on is no matter of this file."""

from __future__ import annotations

from collections.abc import Sequence

from tierpage._report.words import TIER_NAMES, percent, rate
from tierpage._top.figures import Figures, TagPlace, Tier, Waiting
from tierpage.advice import CAUSES, LINKS, predicted_share
from tierpage.memory import format_table
from tierpage.system import format_bytes

_PROGRAM_LENGTH_MOST = 40
_NAME_LENGTH_MOST = 32
_ROWS_SHOWN = 8
_NONE = "no program of this user pages now, or none that `tierpage top` may see (docs/top.md)"
_UNKNOWN = "-"


def overview(programs: Sequence[Figures]) -> list[str]:
    """A row for each program."""
    if not programs:
        return [_NONE]
    rows = [("PID", "on", *TIER_NAMES.values(), "up", "down", "read", "write", "stalled", "ooms")]
    names = ["program"]
    for one in programs:
        if one.look.problem:
            rows.append((str(one.look.process), *[_UNKNOWN] * (len(rows[0]) - 1)))
            names.append(one.look.problem)
            continue
        links = [_rate(one, link.bytes_per_second) for link in one.links.values()]
        tiers = [_used(tier) for tier in one.tiers.values()]
        stalled, ooms = _share(one, one.stalled_shares["total"]), f"{one.level('num_ooms'):.0f}"
        rows.append((str(one.look.process), one.look.device, *tiers, *links, stalled, ooms))
        names.append(cut(one.look.program, _PROGRAM_LENGTH_MOST))
    table = format_table(rows)
    names.insert(1, "-" * max(map(len, names)))
    width = max(map(len, table))
    lines = [f"{line:<{width}}  {name}" for line, name in zip(table, names, strict=True)]
    return [*lines, "", "up, down: GB/s into and out of the device; read, write: GB/s of the disk"]


def details(one: Figures) -> list[str]:
    """All about one program."""
    look = one.look
    if look.problem:
        return [f"process {look.process}: {look.problem}"]
    name = f", {look.device_name}" if look.device_name else ""
    lines = [
        f"{cut(look.program, _PROGRAM_LENGTH_MOST)}, process {look.process}, on {look.device}{name}, "
        f"paging for {duration(one.level('elapsed_seconds'))}, tierpage {look.version}",
        "",
        *_tiers(one),
        f"live tensors {format_bytes(one.level('live_bytes.current'))}, pinned "
        f"{format_bytes(one.level('pinned_bytes.current'))}, dirty {format_bytes(one.level('dirty_bytes.current'))}",
        "",
        *_links(one),
        "",
        *_stalls(one),
    ]
    if one.tag_places:
        lines += ["", *_tag_places(one.tag_places)]
    for what, known in (("tag", one.tags), ("operator", one.operators)):
        if known:
            lines += ["", *_waiting(what, known, one)]
    lines += ["", _counts(one)]
    if one.level("stuck_transfers.current"):
        lines.append(
            f"{one.level('stuck_transfers.current'):.0f} transfers of {format_bytes(one.level('stuck_bytes.current'))} "
            f"hang, the oldest for {duration(one.level('stuck_seconds.current'))}"
        )
    return lines


def title(programs: int | None, interval: float, clock: str) -> str:
    """The line above, for a screen that is drawn again and again."""
    what = "" if programs is None else f"{programs} program{'' if programs == 1 else 's'}, "
    return f"tierpage top, {what}every {interval:g} s, {clock}; q ends"


def cut(text: str, length: int) -> str:
    """The text, shortened to a length where it is longer."""
    return text if len(text) <= length else text[: length - 1] + "…"


def duration(seconds: float) -> str:
    """A time in the two units that suit it."""
    if seconds < 60:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def heat(row: Waiting | TagPlace) -> str:
    """How long ago it was last waited for, or used, as far as the looks have seen."""
    if row.heat in (None, "hot"):
        return row.heat or _UNKNOWN
    seen = row.last_wait_seen if isinstance(row, Waiting) else row.last_use_seen
    return f"{row.heat}, {'' if seen else 'over '}{duration(row.idle_seconds)}"


def _tiers(one: Figures) -> list[str]:
    rows = [("tier", "in use", "budget", "share", "peak")]
    for name, tier in one.tiers.items():
        if tier.budget_bytes or tier.used_bytes:
            used = tier.used_bytes / tier.budget_bytes if tier.budget_bytes else 1.0
            sizes = [format_bytes(size) for size in (tier.used_bytes, tier.budget_bytes, tier.peak_bytes)]
            rows.append((TIER_NAMES[name], sizes[0], sizes[1], percent(used), sizes[2]))
    return format_table(rows)


def _links(one: Figures) -> list[str]:
    rows = [("link", "GB/s", "busy", "GB/s while busy", "in all")]
    for name, link in one.links.items():
        busy = rate(link.bytes_per_second, link.busy_share) if one.seconds else _UNKNOWN
        in_all = format_bytes(one.level(f"link_bytes.{name}"))
        rows.append((LINKS[name], _rate(one, link.bytes_per_second), _share(one, link.busy_share), busy, in_all))
    return format_table(rows)


def _stalls(one: Figures) -> list[str]:
    rows = [("stalled", "now", "in all", "waits")]
    for cause in (*CAUSES, "total"):
        in_all, waits = one.level(f"stall_seconds.{cause}"), one.level(f"stall_count.{cause}")
        rows.append((cause, _share(one, one.stalled_shares[cause]), duration(in_all), f"{waits:.0f}"))
    return format_table(rows)


def _tag_places(known: Sequence[TagPlace]) -> list[str]:
    rows = [("tag", "live", *TIER_NAMES.values(), "used")]
    for row in known[:_ROWS_SHOWN]:
        sizes = map(format_bytes, (row.live_bytes, row.device_bytes, row.host_bytes, row.nvme_bytes))
        rows.append((cut(row.name, _NAME_LENGTH_MOST), *sizes, heat(row)))
    more = len(known) - _ROWS_SHOWN
    return [*format_table(rows), *([f"and {more} more"] if more > 0 else [])]


def _waiting(what: str, known: Sequence[Waiting], one: Figures) -> list[str]:
    rows = [
        (f"{what} waited for" if what == "tag" else f"{what} that waited", "now", "GB/s", "in all", "mostly", "heat")
    ]
    for row in known[:_ROWS_SHOWN]:
        now, bytes_ = _share(one, row.stalled_share), _rate(one, row.bytes_per_second)
        in_all = duration(row.stalled_seconds)
        rows.append((cut(row.name, _NAME_LENGTH_MOST), now, bytes_, in_all, row.cause, heat(row)))
    more = len(known) - _ROWS_SHOWN
    return [*format_table(rows), *([f"and {more} more"] if more > 0 else [])]


def _counts(one: Figures) -> str:
    state = "pages leave, or did lately" if one.level("engaged") else "all fits"
    text = (
        f"out-of-memory errors {one.level('num_ooms'):.0f}, storage errors {one.level('storage_errors.count'):.0f}, "
        f"faults {one.level('faults.count'):.0f}; {state}"
    )
    if one.level("predictor.predicted"):
        text += f"; {percent(predicted_share(one.look.stats))} of the uses came as predicted"
    return text


def _used(tier: Tier) -> str:
    if not tier.budget_bytes:
        return _UNKNOWN
    return f"{format_bytes(tier.used_bytes)} {tier.used_bytes / tier.budget_bytes:.0%}"


def _rate(one: Figures, bytes_per_second: float) -> str:
    return f"{bytes_per_second / 1e9:.2f}" if one.seconds else _UNKNOWN


def _share(one: Figures, share: float) -> str:
    return f"{share:.0%}" if one.seconds else _UNKNOWN
