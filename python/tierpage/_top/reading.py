"""Asks programs what they are doing, and checks the answers: nothing in them is trusted.

All programs are asked at once and have one time to answer, so that one that hangs delays no other.
"""

from __future__ import annotations

import errno
import json
import os
import selectors
import socket
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from tierpage._report.reading import Placed, Stats, amount, clean, placed
from tierpage._top import places
from tierpage._top.publishing import FORMAT
from tierpage.advice import CAUSES

_ANSWER_SECONDS = 1.0
_BYTES_MOST = 1 << 20
_CHUNK_BYTES = 1 << 16
_PROGRAMS_MOST = 256
_STATS_MOST = 1000
_NAMES_MOST = 64  # as many as the engine keeps


@dataclass(frozen=True)
class Waited:
    """An operator or a tag: seconds waited since ``enable``, in all and by cause, and bytes that were waited for."""

    name: str
    seconds: float
    bytes: float
    causes: dict[str, float]


@dataclass(frozen=True)
class Look:
    """What one program said. ``problem`` says why it said nothing; the rest is empty then.

    ``at_seconds`` is on a clock of its own that never goes back. ``stats`` has the names of ``tierpage.memory_stats``,
    counted since ``enable``.
    """

    name: places.Name
    problem: str = ""
    program: str = ""
    version: str = ""
    device: str = ""
    device_name: str = ""
    at_seconds: float = 0.0
    stats: Stats = field(default_factory=Stats)
    operators: tuple[Waited, ...] = ()
    tags: tuple[Waited, ...] = ()
    tag_places: tuple[Placed, ...] = ()

    @property
    def process(self) -> int:
        """The process id, as its own container numbers it."""
        return self.name.process


def look(process: int | None = None) -> list[Look]:
    """Asks all programs of this user, or the one with this process id. Sorted by process id.

    Raises PlaceError where a folder is there but not private, and no other one has a program.
    """
    found: list[Look] = []
    wrong: places.PlaceError | None = None
    for path in dict.fromkeys(places.folders()):
        try:
            with places.opened(path) as folder:
                names = [name for name in places.names_in(folder) if process in (None, name.process)]
                found += _asked(folder, names[:_PROGRAMS_MOST])
        except places.PlaceError as error:
            wrong = error
        except OSError:
            continue  # there is none: no program has been here
    if wrong is not None and not found:
        raise wrong
    return sorted(found, key=lambda one: (one.process, one.name.began))


def _asked(folder: int, names: Iterable[places.Name]) -> list[Look]:
    found: list[Look] = []
    with selectors.DefaultSelector() as selector:
        for name in names:
            asked = _connected(folder, name)
            if isinstance(asked, socket.socket):
                selector.register(asked, selectors.EVENT_READ, (name, bytearray()))
            elif asked is not None:
                found.append(asked)
        until = time.monotonic() + _ANSWER_SECONDS
        while selector.get_map() and (left := until - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                if _received(key):
                    name, data = key.data
                    found.append(checked(name, bytes(data)))
                    selector.unregister(key.fileobj)
                    key.fileobj.close()  # type: ignore[union-attr]
        for key in list(selector.get_map().values()):
            found.append(Look(key.data[0], problem="does not answer"))
            key.fileobj.close()  # type: ignore[union-attr]
    return found


def _connected(folder: int, name: places.Name) -> socket.socket | Look | None:
    """A socket that will have the answer. None: nobody listens any more, and the name is removed."""
    asked = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        asked.setblocking(False)
        asked.connect(places.address_in(folder, str(name)))
        return asked
    except OSError as error:
        asked.close()
        if isinstance(error, BlockingIOError):  # too many ask already, and nobody answers them
            return Look(name, problem="does not answer")
        if error.errno == errno.ECONNREFUSED:
            places.remove(folder, str(name))
        return None


def _received(key: selectors.SelectorKey) -> bool:
    """Takes what is there. True where that was all, or more than any program has to say."""
    data: bytearray = key.data[1]
    with suppress(BlockingIOError):
        try:
            chunk = os.read(key.fd, _CHUNK_BYTES)
        except ConnectionError:
            return True
        data += chunk
        return not chunk or len(data) > _BYTES_MOST
    return False


def checked(name: places.Name, data: bytes) -> Look:
    """What an answer says. What is not as it should be is left out, or makes a problem of all of it."""
    if len(data) > _BYTES_MOST:
        return Look(name, problem="says too much")
    if not data:
        return Look(name, problem="ends")
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return Look(name, problem="does not speak as tierpage does")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        return Look(name, problem="speaks as another version of tierpage does")
    if "problem" in content:
        return Look(name, problem=clean(content["problem"]))
    at, stats = amount(content.get("at_seconds")), content.get("stats")
    if at is None or not isinstance(stats, dict):
        return Look(name, problem="does not speak as tierpage does")
    return Look(
        name,
        program=clean(content.get("program")),
        version=clean(content.get("version")),
        device=clean(content.get("device")),
        device_name=clean(content.get("device_name")),
        at_seconds=at,
        stats=_stats(stats),
        operators=_waited(content.get("operators")),
        tags=_waited(content.get("tags")),
        tag_places=placed(content.get("tag_places")),
    )


def _stats(given: dict[str, Any]) -> Stats:
    stats = Stats()
    for name in list(given)[:_STATS_MOST]:
        number = amount(given[name])
        if number is not None:
            stats[name] = number
    return stats


def _waited(rows: Any) -> tuple[Waited, ...]:
    found = []
    for row in rows[:_NAMES_MOST] if isinstance(rows, list) else ():
        if isinstance(row, dict):
            seconds, bytes_ = (amount(row.get(key)) or 0.0 for key in ("seconds", "bytes"))
            causes = {cause: amount(row.get(f"seconds.{cause}")) or 0.0 for cause in CAUSES}
            found.append(Waited(clean(row.get("name")), seconds, bytes_, causes))
    return tuple(found)
