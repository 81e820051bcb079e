"""A terminal that is drawn on again and again, and left as it was.

Signals that end or stop the command only leave a note and wake whoever waits; so the terminal is never left half-way.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

# Another screen without a cursor, on which long lines end at the border; and back.
_ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l"
_LEAVE = "\x1b[?7h\x1b[?25h\x1b[?1049l"
_TOP, _ERASE_LINE, _ERASE_BELOW = "\x1b[H", "\x1b[K", "\x1b[J"

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_STOPPING = signal.SIGTSTP
_OTHER = (signal.SIGCONT, signal.SIGWINCH)
_KEYS_BYTES_MOST = 1024


class Screen:
    """Owns the terminal of stdout, and the keys of stdin where that is one too, inside a ``with`` block.

    Main thread only. A signal that ended it is sent again when the terminal is as it was, but for Ctrl-C, which is a way
    to end it as q is.
    """

    def __init__(self) -> None:
        self._out = sys.stdout.fileno()
        self._encoding = sys.stdout.encoding or "utf-8"
        self._in: int | None = None
        with suppress(AttributeError, OSError, ValueError):  # there is none
            self._in = sys.stdin.fileno() if sys.stdin.isatty() else None
        self._modes: list[Any] | None = None
        self._handlers: dict[int, Any] = {}
        self._noted: set[int] = set()
        self._wake, self._woken = -1, -1
        self._entered = False

    def __enter__(self) -> Screen:
        sys.stdout.flush()
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        try:
            for number in (*_ENDING, _STOPPING, *_OTHER):
                if signal.getsignal(number) is not signal.SIG_IGN:  # nohup means it
                    self._handlers[number] = signal.signal(number, self._note)
            self._begin()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
        ended_by = [number for number in _ENDING if number in self._noted and number != signal.SIGINT]
        if ended_by:
            os.kill(os.getpid(), ended_by[0])

    @property
    def ended(self) -> bool:
        """True once a signal or a key has asked for the end."""
        return not self._noted.isdisjoint(_ENDING)

    def draw(self, lines: Sequence[str]) -> None:
        """Shows lines from the top, as many and as much of each as there is room for. Raises OSError where nobody looks."""
        columns, rows = os.get_terminal_size(self._out)
        shown = [line[: columns or 80] for line in lines[: rows or 24]]
        text = _TOP + "\r\n".join(line + _ERASE_LINE for line in shown) + _ERASE_BELOW
        self._write(text)

    def wait(self, seconds: float) -> bool:
        """Waits. True where the time is over, False where something happened before: the end, or a screen to be drawn."""
        ready, _, _ = select.select([self._woken, *([] if self._in is None else [self._in])], [], [], max(0.0, seconds))
        if self._woken in ready:
            os.read(self._woken, _KEYS_BYTES_MOST)
        if self._in in ready:
            self._take_keys()
        self._obey()
        return not ready

    def _take_keys(self) -> None:
        assert self._in is not None
        try:
            keys = os.read(self._in, _KEYS_BYTES_MOST)
        except OSError:  # the terminal is gone
            keys = b""
        if not keys or b"q" in keys.lower():
            self._noted.add(signal.SIGINT)

    def _obey(self) -> None:
        """Stops where the user asked for it, and takes the terminal again afterwards."""
        if _STOPPING in self._noted:
            self._noted.discard(_STOPPING)
            self._leave()
            signal.signal(_STOPPING, signal.SIG_DFL)
            os.kill(os.getpid(), _STOPPING)  # goes on here when the shell says so
            signal.signal(_STOPPING, self._note)
            self._begin()
        elif signal.SIGCONT in self._noted:
            self._leave()  # somebody else stopped it, and the shell has set the terminal as it likes it
            self._begin()
        self._noted.difference_update(_OTHER)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted.add(number)
        with suppress(OSError):  # it is full, which wakes as well
            os.write(self._wake, b"\0")

    def _begin(self) -> None:
        if self._in is not None:
            modes = termios.tcgetattr(self._in)
            if self._modes is None:
                self._modes = list(modes)
            modes[3] &= ~(termios.ICANON | termios.ECHO)
            termios.tcsetattr(self._in, termios.TCSADRAIN, modes)
        self._entered = True
        self._write(_ENTER)

    def _leave(self) -> None:
        if self._entered:
            self._entered = False
            with suppress(OSError):  # the terminal is gone
                self._write(_LEAVE)
        if self._modes is not None and self._in is not None:
            with suppress(termios.error):
                termios.tcsetattr(self._in, termios.TCSADRAIN, self._modes)

    def _close(self) -> None:
        self._leave()
        for number, handler in self._handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        os.close(self._wake)
        os.close(self._woken)

    def _write(self, text: str) -> None:
        data = text.encode(self._encoding, "replace")
        while data:
            data = data[os.write(self._out, data) :]
