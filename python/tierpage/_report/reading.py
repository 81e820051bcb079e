"""Reads a trace and keeps what the page needs, checked. A trace is a file from outside: nothing in it is trusted.

What is kept takes a few dozen bytes for each event; the events that json made are let go of one by one.
"""

from __future__ import annotations

import json
import os
import unicodedata
import zlib
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tierpage.advice import CAUSES
from tierpage.trace import CATEGORY, COUNTERS, DIRECTIONS, TOTALS

# Movements by these names are told apart, all others are one kind.
KINDS = (*DIRECTIONS, "map", "unmap", "create_frame", "release_frame", "other")
_KIND_NUMBERS = {name: number for number, name in enumerate(KINDS)}
_TIERS_OF_LABELS = {label: name for name, label in COUNTERS.items()}

_FILE_BYTES_MOST = 1 << 30
_TIME_MOST = 1e17  # microseconds: three thousand years
_NUMBER_MOST = 1e18
_NUMBER_LEAST = 1e-12  # what is nearer to 0 is 0: no quotient of two numbers is beyond what an int can be made of
_NAME_LENGTH_MOST = 120
_ROWS_MOST = 1000
_REGIONS_MOST = 16
_TAGS_MOST = 64  # as many as the engine keeps


class ReportError(Exception):
    """There is no page to be made; the message says why and what to do."""


class Wait(NamedTuple):
    """One wait. Times are microseconds; ``causes`` are microseconds in the order of ``advice.CAUSES``."""

    start: float
    duration: float
    operator: str
    tag: str
    causes: tuple[float, ...]
    bytes: float
    predicted_bytes: float
    regions: tuple[tuple[int, float], ...]  # the largest ones: number and bytes
    region_count: float


class Placed(NamedTuple):
    """Where the live tensors of a tag lie, in bytes, and how often operators have used them."""

    name: str
    live: float
    device: float
    host: float
    nvme: float
    uses: float


@dataclass
class Movements:
    """One entry in each list for each movement. Times are microseconds, ``kinds`` positions in ``KINDS``."""

    kinds: array[int] = field(default_factory=lambda: array("B"))
    starts: array[float] = field(default_factory=lambda: array("d"))
    durations: array[float] = field(default_factory=lambda: array("d"))
    bytes: array[float] = field(default_factory=lambda: array("d"))
    pages: array[int] = field(default_factory=lambda: array("q"))


@dataclass
class Levels:
    """What a counter was from which time on, in the order of the file."""

    times: array[float] = field(default_factory=lambda: array("d"))
    values: array[float] = field(default_factory=lambda: array("d"))


class Stats(dict[str, int | float]):
    """Statistics of a file: what it lacks is 0, so that no rule over them can fail."""

    def __missing__(self, name: str) -> int:
        return 0


@dataclass
class Trace:
    """What a trace says, checked. ``stats`` is None where it has no totals."""

    movements: Movements = field(default_factory=Movements)
    waits: list[Wait] = field(default_factory=list)
    levels: dict[str, Levels] = field(default_factory=dict)
    stats: Stats | None = None
    device: str = ""
    events_most: int | None = None
    operators: list[dict[str, Any]] = field(default_factory=list)
    tags: list[dict[str, Any]] = field(default_factory=list)
    tag_places: tuple[Placed, ...] = ()  # when the trace was written
    left_out: int = 0  # events of ours that cannot be


def read_file(path: str) -> Trace:
    """The trace in a file, compressed or not. Raises ReportError, also where the file cannot be read."""
    name = repr(os.path.basename(path))
    try:
        with open(path, "rb") as file:
            data = file.read(_FILE_BYTES_MOST + 1)
    except OSError as error:
        raise ReportError(f"cannot read {path!r}: {error.strerror}. Give a file of tierpage.export_trace.") from None
    return from_content(_parsed(_decompressed(data, name), name), name)


def _decompressed(data: bytes, name: str) -> bytes:
    """No more than may be read is ever made of a small file."""
    if data[:2] == b"\x1f\x8b":
        opened = zlib.decompressobj(wbits=31)
        try:
            data = opened.decompress(data, _FILE_BYTES_MOST + 1)
        except zlib.error:
            raise ReportError(f"{name} is compressed, but damaged: write the trace again.") from None
        if not opened.eof and len(data) <= _FILE_BYTES_MOST:
            raise ReportError(f"{name} ends too early: write the trace again, or copy the whole of it.")
    if len(data) > _FILE_BYTES_MOST:
        raise ReportError(
            f"{name} holds more than 1 GiB: lower trace_events_max, and write the trace without merge_with."
        )
    return data


def _parsed(data: bytes, name: str) -> Any:
    try:
        return json.loads(data)
    except RecursionError:
        raise ReportError(
            f"{name} is no Chrome trace: it is nested too deep. Give a file of tierpage.export_trace."
        ) from None
    except ValueError as error:
        where = f"{error.msg.lower()} at byte {error.pos}" if isinstance(error, json.JSONDecodeError) else "not UTF-8"
        cut_off = data.lstrip()[:1] in (b"{", b"[") and data.rstrip()[-1:] not in (b"}", b"]")
        hint = "It seems cut off: copy the whole of it" if cut_off else "Give a file of tierpage.export_trace"
        raise ReportError(f"{name} is not JSON ({where}). {hint}.") from None


def from_content(content: Any, name: str) -> Trace:
    """The trace in what json read, whose events are taken out of it. Raises ReportError where it is none of tierpage."""
    events = content.get("traceEvents") if isinstance(content, dict) else content
    if not isinstance(events, list):
        raise ReportError(f"{name} is JSON, but no Chrome trace. Give a file of tierpage.export_trace.")
    trace = Trace()
    other = content.get("otherData") if isinstance(content, dict) else None
    _read_totals(trace, other.get(TOTALS) if isinstance(other, dict) else None)
    reader = _Reader(trace)
    events.reverse()
    while events:
        reader.take(events.pop())
    if trace.stats is None and not (trace.waits or trace.levels or trace.movements.kinds):
        raise ReportError(
            f"{name} is a Chrome trace, but holds nothing of tierpage. Give a file of tierpage.export_trace, "
            "`tierpage run --trace` or `tierpage demo --trace`."
        )
    return trace


class _Reader:
    """Puts events where they belong."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._names: dict[str, str] = {}

    def take(self, event: Any) -> None:
        if not isinstance(event, dict) or event.get("cat") != CATEGORY:
            return
        start, arguments = _time(event.get("ts")), event.get("args")
        if start is None or not isinstance(arguments, dict):
            self._trace.left_out += 1
        elif event.get("ph") == "C":
            self._counter(event.get("name"), start, arguments)
        elif event.get("ph") == "X":
            duration = amount(event.get("dur"), _TIME_MOST)
            if duration is None:
                self._trace.left_out += 1
            elif "operator" in arguments:
                self._wait(start, duration, arguments)
            else:
                self._movement(event.get("name"), start, duration, arguments)

    def _counter(self, label: Any, start: float, arguments: dict[str, Any]) -> None:
        name = _TIERS_OF_LABELS.get(label) if isinstance(label, str) else None
        size = amount(arguments.get("bytes"))
        if name is None or size is None:
            self._trace.left_out += 1
            return
        levels = self._trace.levels.setdefault(name, Levels())
        levels.times.append(start)
        levels.values.append(size)

    def _movement(self, name: Any, start: float, duration: float, arguments: dict[str, Any]) -> None:
        size, page = amount(arguments.get("bytes")), amount(arguments.get("page"))
        if size is None or page is None:
            self._trace.left_out += 1
            return
        movements = self._trace.movements
        known = _KIND_NUMBERS.get(name) if isinstance(name, str) else None
        movements.kinds.append(_KIND_NUMBERS["other"] if known is None else known)
        movements.starts.append(start)
        movements.durations.append(duration)
        movements.bytes.append(size)
        movements.pages.append(int(page))

    def _wait(self, start: float, duration: float, arguments: dict[str, Any]) -> None:
        self._trace.waits.append(
            Wait(
                start,
                duration,
                self._name(arguments.get("operator")),
                self._name(arguments.get("tag", "")),
                tuple(amount(arguments.get(f"{cause} us", 0), _TIME_MOST) or 0.0 for cause in CAUSES),
                amount(arguments.get("bytes")) or 0.0,
                amount(arguments.get("predicted_bytes")) or 0.0,
                tuple(_regions(arguments.get("regions"))),
                amount(arguments.get("region_count")) or 0.0,
            )
        )

    def _name(self, value: Any) -> str:
        """One text for each name, however often it is there."""
        if not isinstance(value, str):
            return clean(value)
        known = self._names.get(value)
        if known is None:
            known = self._names[value] = clean(value)
        return known


def amount(value: Any, most: float = _NUMBER_MOST) -> float | None:
    """A number that is not negative, not absurd and no NaN; None for all else."""
    if type(value) not in (int, float) or not 0 <= value <= most:
        return None
    return float(value) if value >= _NUMBER_LEAST else 0.0


def _time(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and -_TIME_MOST <= value <= _TIME_MOST else None


def clean(value: Any) -> str:
    """A name as short text that can be shown: no control characters, none that turn the direction of writing."""
    if not isinstance(value, str):
        return "(not a name)"
    shown = value[: _NAME_LENGTH_MOST - 1] + "…" if len(value) > _NAME_LENGTH_MOST else value
    return "".join("\ufffd" if unicodedata.category(letter)[0] == "C" else letter for letter in shown)


def _regions(value: Any) -> Iterable[tuple[int, float]]:
    for row in value[:_REGIONS_MOST] if isinstance(value, list) else ():
        if isinstance(row, dict):
            number, size = amount(row.get("region")), amount(row.get("bytes"))
            if number is not None and size is not None:
                yield int(number), size


def placed(rows: Any) -> tuple[Placed, ...]:
    """Rows of the engine's account of tags, most bytes first."""
    found = []
    for row in rows[:_TAGS_MOST] if isinstance(rows, list) else ():
        if isinstance(row, dict):
            numbers = (amount(row.get(key)) or 0.0 for key in ("bytes", "device", "host", "nvme", "uses"))
            found.append(Placed(clean(row.get("name")), *numbers))
    return tuple(found)


def _read_totals(trace: Trace, totals: Any) -> None:
    if not isinstance(totals, dict) or not isinstance(totals.get("stats"), dict):
        return
    trace.stats = Stats()
    for name, value in totals["stats"].items():
        checked = amount(value)
        if checked is not None:
            # Counts and bytes are whole numbers where they are shown.
            trace.stats[name] = value if isinstance(value, int) else checked
    trace.device = clean(totals.get("device", ""))
    most = amount(totals.get("trace_events_max"))
    trace.events_most = None if most is None else int(most)
    trace.operators, trace.tags = _longest(totals.get("operators")), _longest(totals.get("tags"))
    trace.tag_places = placed(totals.get("tag_places"))


def _longest(rows: Any) -> list[dict[str, Any]]:
    """Rows of the engine's sketch of who waited longest, as numbers that can be counted with."""
    names = ("count", "seconds", "bytes", "predicted_bytes", *(f"seconds.{cause}" for cause in CAUSES))
    found = []
    for row in rows[:_ROWS_MOST] if isinstance(rows, list) else ():
        if isinstance(row, dict):
            numbers = {name: amount(row.get(name)) or 0.0 for name in names}
            found.append({"name": clean(row.get("name")), **numbers})
    return sorted(found, key=lambda row: -row["seconds"])
