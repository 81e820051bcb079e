"""Writes the event log as a Chrome trace, which Perfetto, chrome://tracing and Nsight open, alone or merged into
a trace of torch.profiler."""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from typing import Any

from tierpage import advice, memory, native
from tierpage.errors import ConfigError
from tierpage.session import current

# (kind, start in nanoseconds since 1970, duration in nanoseconds, bytes, page)
Event = tuple[str, int, int, int, int]

DIRECTIONS = (
    "host_to_device",
    "device_to_host",
    "nvme_to_host",
    "host_to_nvme",
    "nvme_to_device",
    "device_to_nvme",
)
CATEGORY = "tierpage"  # of every event of ours
TOTALS = "tierpage_totals"  # where otherData has the statistics
PROCESS = 0x71E9  # a process number of our own, apart from those of a merged trace
# Slices of one row must not overlap, so that what overlaps is spread over lanes: rows of their own with the next numbers.
_LANES_MOST = 64
_LANES_APART = 100
_LOOSE_ROW = 900  # waits of no thread's slot
_STALL_ROWS = 1_000
_OTHER_ROWS = 100_000
COUNTERS = {
    "device": "device bytes in use",
    "host": "host bytes in use",
    "nvme": "nvme bytes in use",
    "arriving": "bytes arriving",
    "leaving": "bytes leaving",
}


def export_trace(path: str | os.PathLike[str], merge_with: str | os.PathLike[str] | None = None) -> None:
    """Writes what was moved and waited for since ``enable`` (the newest ``trace_events_max`` events).

    Rows: one per transfer direction, one per thread that waited, and counters of the bytes in each tier, arriving and
    leaving. A wait carries its operator, its causes in microseconds, the bytes and regions it waited for and how many of
    those bytes had been predicted. ``otherData.tierpage`` has predicted against measured, ``otherData.tierpage_totals``
    the statistics, who waited longest and where the live tensors of each tag lie, from which ``tierpage report`` makes a page. With ``merge_with``, the file
    written by ``torch.profiler``'s ``export_chrome_trace``, both are on one time line. A name that ends in .gz is
    compressed. The file appears complete or not at all.

    Raises:
        TierpageError: tierpage is off.
        OSError: a file cannot be read or written.
        ConfigError: ``merge_with`` is not a Chrome trace.
    """
    write_json(path, trace_of_now(merge_with))


def trace_of_now(merge_with: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """What :func:`export_trace` writes, as a dictionary. Raises what it raises, but for the writing."""
    session = current()
    with native.translated():
        events = list(session.runtime.events())
        stalls, levels = list(session.runtime.stalls()), list(session.runtime.levels())
        most, places = session.runtime.stalled_most(), session.runtime.tags()
    merged = _read_trace(merge_with) if merge_with is not None else None
    stats = memory.memory_stats()
    totals = {
        "device": f"{session.config.device}:{session.config.device_index}",
        "trace_events_max": session.config.trace_events_max,
        "stats": stats,
        **{what: [dict(row) for row in most[what]] for what in ("operators", "tags")},
        "tag_places": places,
    }
    compared = advice.comparison(stats)
    return build_trace(events, merged, stalls=stalls, levels=levels, compared=compared, totals=totals)


def build_trace(
    events: Iterable[Event],
    merged: Mapping[str, Any] | None = None,
    *,
    stalls: Iterable[Mapping[str, Any]] = (),
    levels: Iterable[Mapping[str, int]] = (),
    compared: Mapping[str, Any] | None = None,
    totals: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The trace as a dictionary. Times are microseconds from the merged trace's base, else since 1970.

    ``stalls`` and ``levels`` are rows of the engine's functions of that name, ``compared`` and ``totals`` go into the
    metadata.
    """
    trace: dict[str, Any] = dict(merged or {"displayTimeUnit": "ms"})
    base = int(trace.setdefault("baseTimeNanoseconds", 0))
    rows = _Rows()
    made = [_movement(event, base, rows) for event in sorted(events, key=lambda event: event[1])]
    made += [_wait(stall, base, rows) for stall in sorted(stalls, key=lambda stall: stall["start_ns"])]
    for row in levels:
        made += [_counter(label, row["at_ns"], row[name], base) for name, label in COUNTERS.items()]
    heads = [_metadata("process_name", 0, name="tierpage")]
    for number, name in sorted(rows.names.items()):
        heads.append(_metadata("thread_name", number, name=name))
        heads.append(_metadata("thread_sort_index", number, sort_index=number))
    trace["traceEvents"] = [*trace.get("traceEvents", []), *heads, *made]
    own = {"tierpage": compared, TOTALS: totals}
    for name, content in own.items():
        if content is not None:
            other = trace.get("otherData")
            trace["otherData"] = {**(other if isinstance(other, dict) else {}), name: dict(content)}
    return trace


class _Rows:
    """Numbers and names of the rows in use."""

    def __init__(self) -> None:
        self.names: dict[int, str] = {}
        self._ends: dict[int, list[int]] = {}
        self._others: dict[str, int] = {}

    def of_movement(self, kind: str, start: int, end: int) -> int:
        if kind in DIRECTIONS:
            first = (DIRECTIONS.index(kind) + 1) * _LANES_APART
        else:
            first = self._others.setdefault(kind, _OTHER_ROWS + len(self._others) * _LANES_APART)
        return self._lane(first, kind.replace("_", " "), start, end)

    def of_wait(self, thread: int, start: int, end: int) -> int:
        if thread < 0:
            return self._lane(_LOOSE_ROW, "other waits", start, end)
        self.names[_STALL_ROWS + thread] = f"waits of thread {thread}"
        return _STALL_ROWS + thread

    def _lane(self, first: int, name: str, start: int, end: int) -> int:
        ends = self._ends.setdefault(first, [])
        lane = next((number for number, busy_until in enumerate(ends) if busy_until <= start), len(ends))
        if lane == len(ends) < _LANES_MOST:
            ends.append(0)
        lane = min(lane, _LANES_MOST - 1)
        ends[lane] = max(ends[lane], end)
        self.names[first + lane] = name if lane == 0 else f"{name} {lane + 1}"
        return first + lane


def _slice(name: str, start: int, duration: int, base: int, row: int, arguments: dict[str, Any]) -> dict[str, Any]:
    times = {"ts": (start - base) / 1000, "dur": duration / 1000}
    return {"name": name, "cat": CATEGORY, "ph": "X", "pid": PROCESS, "tid": row, **times, "args": arguments}


def _movement(event: Event, base: int, rows: _Rows) -> dict[str, Any]:
    kind, start, duration, size, page = event
    arguments: dict[str, Any] = {"bytes": size, "page": page}
    if kind in DIRECTIONS and duration > 0:
        arguments["GB/s"] = round(size / duration, 3)
    return _slice(kind, start, duration, base, rows.of_movement(kind, start, start + duration), arguments)


def _wait(stall: Mapping[str, Any], base: int, rows: _Rows) -> dict[str, Any]:
    start, duration = stall["start_ns"], stall["duration_ns"]
    arguments: dict[str, Any] = {"operator": stall["name"]}
    if stall["tag"]:
        arguments["tag"] = stall["tag"]
    arguments |= {f"{cause} us": ns / 1000 for cause, ns in stall["causes_ns"].items()}
    arguments |= {name: stall[name] for name in ("bytes", "pages", "predicted_bytes", "region_count")}
    # The largest few only.
    arguments["regions"] = [
        {"region": region, "pages": pages, "bytes": size} for region, pages, size in stall["regions"]
    ]
    arguments["predicted"] = stall["bytes"] > 0 and 2 * stall["predicted_bytes"] >= stall["bytes"]
    row = rows.of_wait(stall["thread"], start, start + duration)
    return _slice(f"{stall['kind']}: {stall['name']}", start, duration, base, row, arguments)


def _counter(label: str, at: int, size: int, base: int) -> dict[str, Any]:
    return {
        "name": label,
        "cat": CATEGORY,
        "ph": "C",
        "pid": PROCESS,
        "ts": (at - base) / 1000,
        "args": {"bytes": size},
    }


def _metadata(what: str, row: int, **arguments: Any) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": PROCESS, "tid": row, "args": arguments}


def _read_trace(path: str | os.PathLike[str]) -> dict[str, Any]:
    with open(path, "rb") as file:
        data = file.read()
    try:
        trace = json.loads(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
    except (ValueError, OSError) as error:
        raise ConfigError(f"merge_with={os.fspath(path)!r} is not a Chrome trace in JSON: {error}.") from None
    if isinstance(trace, list):
        trace = {"traceEvents": trace}
    if not isinstance(trace, dict) or not isinstance(trace.get("traceEvents", []), list):
        raise ConfigError(f"merge_with={os.fspath(path)!r} is JSON, but not a Chrome trace: it has no traceEvents.")
    return trace


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Writes JSON, compressed where the name ends in .gz; see :func:`write_whole`."""
    data = json.dumps(content, separators=(",", ":")).encode()
    write_whole(path, gzip.compress(data, 6) if os.fspath(path).endswith(".gz") else data)


def writable_file(path: str, option: str) -> str:
    """The absolute path of a file that an option names, for a program that may change its folder.

    Raises ConfigError, which names the option, where no file can be written there.
    """
    path = os.path.abspath(path)
    if os.path.isdir(path) or not os.access(os.path.dirname(path), os.W_OK | os.X_OK):
        raise ConfigError(f"{option} {path!r} cannot be written: give a file in a folder that exists and is yours.")
    return path


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a file beside ``path``, then moves it there in one step, so that it appears complete or not at all."""
    target = os.path.abspath(os.fspath(path))
    number, temporary = tempfile.mkstemp(prefix=".tierpage-", dir=os.path.dirname(target))
    try:
        with os.fdopen(number, "wb") as file:
            file.write(data)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
