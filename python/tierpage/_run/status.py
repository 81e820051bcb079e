"""One line about a running pager: what is in the tiers, what moves, how long the program waits.

A thread draws it about once a second. It only reads :func:`tierpage.memory_stats`, which takes a fraction of a
millisecond.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Protocol

from tierpage.errors import TierpageError
from tierpage.memory import TIERS, Number, memory_stats
from tierpage.progress import PoliteLine
from tierpage.system import format_bytes
from tierpage.ticker import Ticker

Stats = Mapping[str, Number]

_LINE_SECONDS = 1.0
_LOG_SECONDS = 10.0
_NAMES = {"device": "device", "host": "RAM", "nvme": "NVMe"}


def status_text(now: Stats, before: Stats, seconds: float) -> str:
    """The line for two readings of the statistics, ``seconds`` apart."""

    def since(name: str) -> float:
        # A program that resets its statistics makes them smaller.
        return max(0.0, now.get(name, 0) - before.get(name, 0)) / seconds if seconds > 0 else 0.0

    parts = []
    for tier in TIERS:
        budget = now.get(f"budget_bytes.{tier}", 0)
        if budget:
            used = format_bytes(now.get(f"resident_bytes.{tier}.current", 0))
            parts.append(f"{_NAMES[tier]} {used} of {format_bytes(budget)}")
    up, down = since("link_bytes.to_device") / 1e9, since("link_bytes.to_host") / 1e9
    # Waits of several threads add up.
    stalled = min(1.0, since("stall_seconds.total"))
    parts += [f"up {up:.2f} down {down:.2f} GB/s", f"stalled {stalled:.0%}"]
    return "tierpage: " + " | ".join(parts)


class _Shown(Protocol):
    def show(self, text: str) -> None: ...
    def clear(self) -> None: ...
    def close(self) -> None: ...


class _LogLines:
    """Whole lines, for a stderr that is no terminal."""

    def show(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def clear(self) -> None:
        pass

    def close(self) -> None:
        pass


class Status:
    """Shows the line from :meth:`start` to :meth:`stop`."""

    def __init__(self, shown: _Shown, seconds: float) -> None:
        self._shown = shown
        self._ticker = Ticker("tierpage-status", self._tick, seconds)
        self._before: Stats = {}
        self._read_at = 0.0
        self._broken = False

    def start(self) -> None:
        """Starts the thread."""
        self._before, self._read_at = memory_stats(), time.monotonic()
        self._ticker.start()

    def stop(self) -> None:
        """Ends the thread and leaves an empty line."""
        self._ticker.stop()
        self._shown.close()

    def _tick(self) -> None:
        if self._broken:
            return
        try:
            now, at = memory_stats(), time.monotonic()
            if now:
                self._shown.show(status_text(now, self._before, at - self._read_at))
            else:
                self._shown.clear()  # the program has switched tierpage off
            self._before, self._read_at = now, at
        except (TierpageError, OSError, ValueError):
            # The pager or the terminal is gone. The program will hear of the pager, and nobody looks at the terminal.
            self._broken = True
            with suppress(OSError):
                self._shown.clear()


def status(wanted: bool | None) -> Status | None:
    """The line as it was asked for, or None. ``wanted`` is None where nobody said: then on a terminal only.

    Of several processes that a launcher starts on a machine only the first shows one.
    """
    if wanted is False or sys.stderr is None or os.environ.get("LOCAL_RANK", "0") != "0":
        return None
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        return Status(PoliteLine(), _LINE_SECONDS)
    return Status(_LogLines(), _LOG_SECONDS) if wanted else None
