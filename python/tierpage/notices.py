"""A thread that passes on, about once a second, what the engine has to say while a program runs.

It holds no lock while it sleeps, and it is never inside the engine without the GIL: at the interpreter's end it can be
joined at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

_SECONDS = 1.0


class NoticeThread:
    """Calls ``pass_on`` every second from :meth:`start` to :meth:`stop`."""

    def __init__(self, pass_on: Callable[[], None]) -> None:
        self._pass_on = pass_on
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tierpage-notices", daemon=True)

    def start(self) -> None:
        """Starts the thread, once."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread. Does nothing where it never started or has ended."""
        self._ended.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(_SECONDS):
            self._pass_on()
