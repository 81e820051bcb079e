"""Writes the event log as a Chrome trace, which Perfetto, chrome://tracing and Nsight open, alone or merged into
a trace of torch.profiler."""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from typing import Any

from tierpage import api, native
from tierpage.errors import ConfigError

# (kind, start in nanoseconds since 1970, duration in nanoseconds, bytes, region, thread)
Event = tuple[str, int, int, int, int, int]

DIRECTIONS = (
    "host_to_device",
    "device_to_host",
    "nvme_to_host",
    "host_to_nvme",
    "nvme_to_device",
    "device_to_nvme",
)
PROCESS = 0x71E9  # a process number of our own, apart from those of a merged trace
_STALL_ROWS = 1000
_OTHER_ROWS = 100
_COUNTER_PREFIX = "resident."


def export_trace(path: str | os.PathLike[str], merge_with: str | os.PathLike[str] | None = None) -> None:
    """Writes what was moved and waited for since ``enable`` (the newest ``trace_events_max`` events).

    Rows: one per transfer direction, one per thread that waited, and a counter per tier. With ``merge_with``, the file
    written by ``torch.profiler``'s ``export_chrome_trace``, both are on one time line. A name that ends in .gz is
    compressed. The file appears complete or not at all.

    Raises TierpageError while tierpage is off, OSError where a file cannot be read or written, ConfigError where
    ``merge_with`` is not a Chrome trace.
    """
    session = api.current()
    with native.translated():
        events = list(session.runtime.events())
    write_json(path, build_trace(events, _read_trace(merge_with) if merge_with is not None else None))


def build_trace(events: Iterable[Event], merged: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The trace as a dictionary. Times are microseconds from the merged trace's base, else since 1970."""
    trace: dict[str, Any] = dict(merged or {"displayTimeUnit": "ms"})
    base = int(trace.setdefault("baseTimeNanoseconds", 0))
    rows: dict[int, str] = {}
    made = [_entry(event, base, rows) for event in events]
    heads = [_metadata("process_name", 0, name="tierpage")]
    for row in sorted(rows):
        heads.append(_metadata("thread_name", row, name=rows[row]))
        heads.append(_metadata("thread_sort_index", row, sort_index=row))
    trace["traceEvents"] = [*trace.get("traceEvents", []), *heads, *made]
    return trace


def _entry(event: Event, base: int, rows: dict[int, str]) -> dict[str, Any]:
    kind, start, duration, size, region, thread = event
    common = {"name": kind, "cat": "tierpage", "pid": PROCESS, "ts": (start - base) / 1000}
    if kind.startswith(_COUNTER_PREFIX):
        return {**common, "ph": "C", "args": {"bytes": size}}
    row = _row(kind, thread, rows)
    arguments: dict[str, Any] = {"bytes": size, "region": region}
    if kind in DIRECTIONS and duration > 0:
        arguments["GB/s"] = round(size / duration, 3)
    return {**common, "ph": "X", "tid": row, "dur": duration / 1000, "args": arguments}


def _row(kind: str, thread: int, rows: dict[int, str]) -> int:
    if kind in DIRECTIONS:
        row, name = DIRECTIONS.index(kind) + 1, kind.replace("_", " ")
    elif kind.endswith("stall"):
        row, name = _STALL_ROWS + thread, f"waits of thread {thread}"
    else:
        row = next((number for number, known in rows.items() if known == kind), _OTHER_ROWS + len(rows))
        name = kind
    rows[row] = name
    return row


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
    """Writes JSON (compressed where the name ends in .gz) beside ``path``, then moves it there in one step."""
    target = os.path.abspath(os.fspath(path))
    data = json.dumps(content, separators=(",", ":")).encode()
    if target.endswith(".gz"):
        data = gzip.compress(data, 6)
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
