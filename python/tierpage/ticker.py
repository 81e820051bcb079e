"""A thread that does something small about once a second while a program runs.

It holds no lock while it sleeps, and it is never inside the engine without the GIL: at the interpreter's end it can be
joined at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable


class Ticker:
    """Calls ``work`` every ``seconds`` from :meth:`start` to :meth:`stop`, in a thread of the given name."""

    def __init__(self, name: str, work: Callable[[], None], seconds: float = 1.0) -> None:
        self._work = work
        self._seconds = seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Starts the thread, once."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread. Does nothing where it never started or has ended."""
        self._ended.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self._seconds):
            self._work()
