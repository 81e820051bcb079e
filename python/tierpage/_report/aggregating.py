"""Counts what a trace says: over time, by who waited, by what moved. Seconds, bytes, shares from 0 to 1."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tierpage._report.reading import KINDS, Levels, Movements, Trace, Wait
from tierpage.advice import CAUSES, LINKS
from tierpage.memory import TIERS
from tierpage.trace import DIRECTIONS

SLICES = 480  # of the time line: about two pixels each on a wide screen
GROUP = 20  # slices in a row of the time line's table

# The directions that use a link. What moves between disk and device uses two.
DIRECTIONS_OF_LINKS = {
    "to_device": ("host_to_device", "nvme_to_device"),
    "to_host": ("device_to_host", "device_to_nvme"),
    "nvme_read": ("nvme_to_host", "nvme_to_device"),
    "nvme_write": ("host_to_nvme", "device_to_nvme"),
}
_MICRO = 1e-6


class Spread:
    """An amount over equal slices of time, added up in a time that does not depend on how many slices it touches."""

    def __init__(self, start: float, width: float, count: int = SLICES) -> None:
        self._start, self._width, self._count = start, width, count
        self._parts = [0.0] * count
        self._changes = [0.0] * (count + 1)  # of the amount in each slice that is covered whole

    def add(self, start: float, duration: float, amount: float) -> None:
        """Spreads an amount evenly over a stretch of time."""
        # Times are large numbers, so that their fractions are coarse; those from the beginning on are not.
        start -= self._start
        first, last = self._slice(start), self._slice(start + duration)
        if first == last or duration <= 0:
            self._parts[first] += amount
            return
        each = amount / duration
        head = min(each * max((first + 1) * self._width - start, 0.0), amount)
        whole = each * self._width
        self._parts[first] += head
        self._parts[last] += max(amount - head - whole * (last - first - 1), 0.0)
        self._changes[first + 1] += whole
        self._changes[last] -= whole

    def amounts(self) -> list[float]:
        """What fell into each slice."""
        found, whole = [], 0.0
        for part, change in zip(self._parts, self._changes, strict=False):
            whole += change
            found.append(max(part + whole, 0.0))
        return found

    def _slice(self, time: float) -> int:
        return min(max(int(time / self._width), 0), self._count - 1)


@dataclass
class TimeLine:
    """The tiers, links and waits in ``SLICES`` slices of ``seconds``.

    ``levels`` are the most bytes in a tier within a slice, None before they are known; ``rates`` bytes a second over a
    link; ``waited`` the share of a slice in which somebody waited, at most 1.
    """

    seconds: float
    levels: dict[str, list[float | None]] = field(default_factory=dict)
    rates: dict[str, list[float]] = field(default_factory=dict)
    waited: list[float] = field(default_factory=list)
    start: float = 0.0  # microseconds, as in the trace


def time_line(trace: Trace) -> TimeLine | None:
    """The time line; None where the trace holds no event."""
    start, end = _extent(trace)
    if start is None or end is None:
        return None
    width = max(end - start, 1.0) / SLICES  # a microsecond at least
    line = TimeLine(width * SLICES * _MICRO, start=start)
    for tier in TIERS:
        if tier in trace.levels:
            line.levels[tier] = _most_in_slices(trace.levels[tier], start, width)
    moved = _moved_over_time(trace.movements, start, width)
    for link, amounts in moved.items():
        line.rates[link] = [amount / (width * _MICRO) for amount in amounts]
    waited = Spread(start, width)
    for wait in trace.waits:
        waited.add(wait.start, wait.duration, wait.duration)
    line.waited = [min(amount / width, 1.0) for amount in waited.amounts()]
    return line


def _extent(trace: Trace) -> tuple[float | None, float | None]:
    starts: list[float] = []
    ends: list[float] = []
    for levels in trace.levels.values():
        starts.append(min(levels.times))
        ends.append(max(levels.times))
    movements = trace.movements
    if movements.starts:
        starts.append(min(movements.starts))
        ends.append(max(map(float.__add__, movements.starts, movements.durations)))
    if trace.waits:
        starts.append(min(wait.start for wait in trace.waits))
        ends.append(max(wait.start + wait.duration for wait in trace.waits))
    return (min(starts), max(ends)) if starts else (None, None)


def _most_in_slices(levels: Levels, start: float, width: float) -> list[float | None]:
    most: list[float | None] = [None] * SLICES
    last: list[float | None] = [None] * SLICES
    for time, value in sorted(zip(levels.times, levels.values, strict=True), key=lambda pair: pair[0]):
        number = min(int((time - start) / width), SLICES - 1)
        before = most[number]
        most[number] = value if before is None else max(before, value)
        last[number] = value
    found: list[float | None] = []
    carried: float | None = None
    for here, end in zip(most, last, strict=True):
        # What a tier held before a slice it also held at the slice's beginning.
        known = [value for value in (carried, here) if value is not None]
        found.append(max(known) if known else None)
        carried = carried if end is None else end
    return found


def _moved_over_time(movements: Movements, start: float, width: float) -> dict[str, list[float]]:
    by_direction = [Spread(start, width) for _ in DIRECTIONS]
    columns = (movements.kinds, movements.starts, movements.durations, movements.bytes)
    for kind, at, duration, size in zip(*columns, strict=True):
        if kind < len(DIRECTIONS):
            by_direction[kind].add(at, duration, size)
    amounts = {name: spread.amounts() for name, spread in zip(DIRECTIONS, by_direction, strict=True)}
    return {
        link: [sum(parts) for parts in zip(*(amounts[name] for name in names), strict=True)]
        for link, names in DIRECTIONS_OF_LINKS.items()
    }


def grouped(values: Sequence[float | None], combine: Callable[[list[float]], float]) -> list[float | None]:
    """The slices of a time line in groups, for its table."""
    found: list[float | None] = []
    for first in range(0, len(values), GROUP):
        known = [value for value in values[first : first + GROUP] if value is not None]
        found.append(combine(known) if known else None)
    return found


def mean(values: list[float]) -> float:
    """The mean of at least one value."""
    return sum(values) / len(values)


def bytes_moved(movements: Movements) -> dict[str, tuple[int, float]]:
    """Movements and bytes of each direction in the trace."""
    found = dict.fromkeys(DIRECTIONS, (0, 0.0))
    for kind, size in zip(movements.kinds, movements.bytes, strict=True):
        if kind < len(DIRECTIONS):
            count, total = found[DIRECTIONS[kind]]
            found[DIRECTIONS[kind]] = (count + 1, total + size)
    return found


def link_bytes(moved: dict[str, tuple[int, float]]) -> dict[str, float]:
    """Bytes over each link, from those of each direction."""
    return {link: sum(moved[name][1] for name in DIRECTIONS_OF_LINKS[link]) for link in LINKS}


def waits_by_cause(waits: Iterable[Wait]) -> dict[str, tuple[int, float]]:
    """How many waits a cause had a part in, and its seconds; "total" has all of them."""
    found = dict.fromkeys((*CAUSES, "total"), (0, 0.0))
    for wait in waits:
        for cause, time in (*zip(CAUSES, wait.causes, strict=True), ("total", wait.duration)):
            if time > 0 or cause == "total":
                count, seconds = found[cause]
                found[cause] = (count + 1, seconds + time * _MICRO)
    return found


def waits_by(waits: Iterable[Wait], name_of: Callable[[Wait], str]) -> list[dict[str, Any]]:
    """Who waited, longest first, in rows as the engine's; waits without a name are left out."""
    found: dict[str, dict[str, Any]] = {}
    for wait in waits:
        name = name_of(wait)
        if not name:
            continue
        row = found.get(name)
        if row is None:
            numbers = ("count", "seconds", "bytes", "predicted_bytes", *(f"seconds.{cause}" for cause in CAUSES))
            row = found[name] = {"name": name, **dict.fromkeys(numbers, 0.0)}
        row["count"] += 1
        row["seconds"] += wait.duration * _MICRO
        row["bytes"] += wait.bytes
        row["predicted_bytes"] += wait.predicted_bytes
        for cause, time in zip(CAUSES, wait.causes, strict=True):
            row[f"seconds.{cause}"] += time * _MICRO
    return sorted(found.values(), key=lambda row: -row["seconds"])


@dataclass
class Region:
    """One region (the storage of one tensor) as the waits know it."""

    number: int
    waits: int = 0
    bytes: float = 0.0
    most: float = 0.0  # bytes in one wait: it is at least that large
    seconds: float = 0.0  # of the waits that it had a part in
    operators: dict[str, int] = field(default_factory=dict)
    tag: str = ""


def regions(waits: Iterable[Wait]) -> list[Region]:
    """The regions that were waited for, most bytes first."""
    found: dict[int, Region] = {}
    for wait in waits:
        for number, size in wait.regions:
            region = found.get(number)
            if region is None:
                region = found[number] = Region(number)
            region.waits += 1
            region.bytes += size
            region.most = max(region.most, size)
            region.seconds += wait.duration * _MICRO
            region.operators[wait.operator] = region.operators.get(wait.operator, 0) + 1
            # The tag is that of the first tensor of a wait: of a region for sure only where it is the only one.
            if wait.region_count == 1 and wait.tag:
                region.tag = wait.tag
    return sorted(found.values(), key=lambda region: -region.bytes)


@dataclass
class Page:
    """One page as its movements show it. ``below`` is where its last copy outside the device was made or taken from."""

    number: int
    bytes: float = 0.0
    moved: dict[str, float] = field(default_factory=lambda: dict.fromkeys(DIRECTIONS, 0.0))
    times: int = 0
    in_device: bool = False
    below: str = ""

    @property
    def total(self) -> float:
        """Bytes moved in all."""
        return sum(self.moved.values())

    @property
    def last_seen(self) -> str:
        """The tier that it was last known to be in."""
        return "device" if self.in_device else self.below


def pages(movements: Movements) -> list[Page]:
    """The pages that were moved, most bytes first."""
    columns = (movements.kinds, movements.pages, movements.bytes)
    map_, unmap = KINDS.index("map"), KINDS.index("unmap")
    found: dict[int, Page] = {}
    order = sorted(range(len(movements.starts)), key=movements.starts.__getitem__)
    for kind, number, size in zip(*([column[index] for index in order] for column in columns), strict=True):
        if kind >= len(DIRECTIONS) and kind not in (map_, unmap):
            continue
        page = found.get(number)
        if page is None:
            page = found[number] = Page(number)
        if kind >= len(DIRECTIONS):
            page.in_device = kind == map_
            page.bytes = max(page.bytes, size)  # what moves may be its code, which is shorter
            continue
        name = DIRECTIONS[kind]
        source, _, target = name.partition("_to_")
        page.bytes = max(page.bytes, size)
        page.moved[name] += size
        page.times += 1
        page.in_device = page.in_device or target == "device"
        page.below = source if target == "device" else target
    return sorted((page for page in found.values() if page.times), key=lambda page: (-page.total, page.number))
