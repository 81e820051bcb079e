"""One line on a terminal that changes while something goes on, and a progress bar on it; silence elsewhere.

The bar uses rich if it is installed.
"""

from __future__ import annotations

import builtins
import functools
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

Advance = Callable[[str], None]

ERASE = "\r\x1b[K"
# What a program sends after a line's end without leaving the start of the next one: colours, and erasing.
_STAYS = re.compile(rb"(?:\x1b\[[0-9;]*[mK])+$")


@contextmanager
def progress(title: str, total: int, stream: TextIO | None = None) -> Iterator[Advance]:
    """Gives a function to call after each of ``total`` steps with a short note. Draws on ``stream`` (stderr)."""
    stream = stream or sys.stderr
    if not stream.isatty():
        yield lambda note: None
        return
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        with _plain(title, total, stream) as advance:
            yield advance
        return
    with Progress(console=Console(file=stream), transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda note: bar.update(task, advance=1, description=f"{title} {note}")


@contextmanager
def _plain(title: str, total: int, stream: TextIO) -> Iterator[Advance]:
    done, start, width = 0, time.monotonic(), 30

    def advance(note: str) -> None:
        nonlocal done
        done += 1
        filled = width * done // max(1, total)
        left = (time.monotonic() - start) / done * (total - done)
        stream.write(f"{ERASE}{title} [{'#' * filled}{'.' * (width - filled)}] {done}/{total} {note} {left:.0f} s left")
        stream.flush()

    try:
        yield advance
    finally:
        stream.write(ERASE)
        stream.flush()


class PoliteLine:
    """A line on the terminal of ``stderr`` that gives way to all that the program writes there and reads from there.

    It stands only where the program's own output has ended its last line. What the program sends to the terminal passes
    through the ``write`` of the raw files below ``sys.stdout`` and ``sys.stderr``, which take the line away first. Output
    that goes past Python's files (of C code, of child processes) is not seen.

    Invariant: while ``_shown`` the cursor stands behind the line; else it stands where the program left it.
    """

    def __init__(self) -> None:
        self._number = sys.stderr.fileno()
        self._terminal = os.fstat(self._number).st_rdev
        self._lock = threading.RLock()  # a signal's handler may write while its thread writes
        self._shown = False
        self._at_start = True
        self._reading = 0
        self._undo: list[Callable[[], None]] = []
        os.register_at_fork(after_in_child=self._forget)
        for stream in (sys.stdout, sys.stderr):
            self._watch(stream, "write", self._around_write)
        self._watch(sys.stdin, "readinto", self._around_read)
        self._replace(builtins, "input", self._around_read(builtins.input))

    def show(self, text: str) -> None:
        """Draws the text, cut to the terminal, if the line is free and the program in the foreground."""
        with self._lock:
            if not self._in_foreground():
                self._shown = False  # the terminal is the shell's now: nothing is written there, not even to erase
                return
            if not self._undo or not self._at_start or self._reading:
                return
            width = (os.get_terminal_size(self._number).columns or 80) - 1  # 0: the terminal does not know
            os.write(self._number, (ERASE + text[:width]).encode(errors="replace"))
            self._shown = True

    def clear(self) -> None:
        """Leaves the line empty."""
        with self._lock:
            if self._shown:
                self._shown = False
                os.write(self._number, ERASE.encode())

    def close(self) -> None:
        """Leaves the line empty for good, and the program's files as they were."""
        with self._lock:
            while self._undo:
                self._undo.pop()()
            with suppress(OSError):  # the terminal is gone
                self.clear()

    def _forget(self) -> None:
        """In a forked child: the line is the parent's."""
        self._lock = threading.RLock()
        self._shown = False
        self._undo.clear()

    def _in_foreground(self) -> bool:
        """False also where the program has put something else in the place of its terminal."""
        if not os.isatty(self._number) or os.fstat(self._number).st_rdev != self._terminal:
            return False
        try:
            return os.tcgetpgrp(self._number) == os.getpgrp()
        except OSError:  # it is not the terminal that controls this process
            return True

    def _watch(self, stream: Any, name: str, around: Callable[[Any], Any]) -> None:
        with suppress(AttributeError, OSError, ValueError):  # no stream, or one of another kind
            if os.fstat(stream.fileno()).st_rdev == self._terminal:
                raw = getattr(stream.buffer, "raw", stream.buffer)  # python -u has no buffer in between
                self._replace(raw, name, around(getattr(raw, name)))

    def _replace(self, thing: Any, name: str, new: Any) -> None:
        old = vars(thing).get(name)

        def undo() -> None:
            if vars(thing).get(name) is not new:
                return  # somebody has replaced it since
            if old is None:
                delattr(thing, name)
            else:
                setattr(thing, name, old)

        setattr(thing, name, new)
        self._undo.append(undo)

    def _around_write(self, write: Callable[[Any], int | None]) -> Callable[[Any], int | None]:
        def around(data: Any) -> int | None:
            with self._lock:
                self.clear()
                count = write(data)
                if count:
                    end = _STAYS.sub(b"", bytes(memoryview(data).cast("B")[max(0, count - 64) : count]))
                    self._at_start = end.endswith(b"\n") if end else self._at_start
                return count

        return around

    def _around_read(self, read: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(read)
        def around(*arguments: Any) -> Any:
            with self._lock:
                self.clear()
                self._reading += 1
            try:
                return read(*arguments)
            finally:
                with self._lock:
                    self._reading -= 1
                    self._at_start = True  # the line that was read ended with the key that sent it

        return around
