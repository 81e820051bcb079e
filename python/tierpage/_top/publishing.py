"""The program's side of ``tierpage top``: answers, with what it is doing now, those who ask at its socket.

A thread waits in ``accept`` and does nothing until somebody asks; then it reads the statistics once, which takes a
fraction of a millisecond. Whatever goes wrong here is no matter of the program's: it pages on, and cannot be looked at.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from tierpage._top import places

FORMAT = 1
_ANSWER_SECONDS = 0.5
_WAITING_MOST = 16

_log = logging.getLogger("tierpage")

Answer = Callable[[], dict[str, Any]]


class Publisher:
    """Answers from :meth:`start` to :meth:`stop` with what ``answer`` returns, which becomes JSON.

    The socket has its name only while somebody listens to it: it is made under a hidden one. A forked child gives its
    copy of the socket up, so that nobody waits for an answer from a process that has no such thread.
    """

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._ended = threading.Event()
        self._listener: socket.socket | None = None
        self._path = ""
        self._identity: tuple[int, int] | None = None
        self._thread = threading.Thread(target=self._run, name="tierpage-top", daemon=True)

    def start(self) -> None:
        """Opens the socket and starts the thread. Where that cannot be the log says why, and that is all."""
        _running.add(self)  # first: another thread may fork at any moment
        try:
            self._open()
            self._thread.start()
        except Exception as error:
            _log.info("`tierpage top` will not show this program: %s.", error)
            self._give_up()

    def stop(self) -> None:
        """Ends the thread and removes the socket. Does nothing where it never started, has ended, or in a forked child."""
        listener = self._listener
        if listener is None:
            return
        self._ended.set()
        if self._is_ours(listener):
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # whoever waits in accept returns
            if self._thread.is_alive():
                self._thread.join()
        self._give_up()

    def forget(self) -> None:
        """In a forked child: the socket and the thread are the parent's."""
        self._path = ""
        self._ended.set()
        self._give_up()

    def _open(self) -> None:
        name = places.own_name()
        with places.private_folder() as (path, folder):
            places.names_in(folder)  # removes what processes that were killed have left
            listener = self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            found = os.fstat(listener.fileno())
            self._identity = (found.st_dev, found.st_ino)
            listener.settimeout(None)  # whatever the program has made the default
            places.remove(folder, name.hidden)
            try:
                listener.bind(places.address_in(folder, name.hidden))
                listener.listen(_WAITING_MOST)
                os.rename(name.hidden, str(name), src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                places.remove(folder, name.hidden)
                raise
            self._path = os.path.join(path, str(name))

    def _is_ours(self, listener: socket.socket) -> bool:
        """False where the program has closed all descriptors and may have something else under this number."""
        try:
            found = os.fstat(listener.fileno())
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self._identity

    def _give_up(self) -> None:
        _running.discard(self)
        path, self._path = self._path, ""
        if path:
            with suppress(OSError):
                os.unlink(path)
        listener, self._listener = self._listener, None
        if listener is None:
            return
        if self._is_ours(listener):
            listener.close()
        else:
            listener.detach()

    def _run(self) -> None:
        listener = self._listener
        while listener is not None and not self._ended.is_set() and self._is_ours(listener):
            try:
                asker, _ = listener.accept()
            except OSError:
                self._ended.wait(1)  # no descriptor is free, or this is the end
                continue
            with asker, suppress(OSError):
                asker.settimeout(_ANSWER_SECONDS)
                asker.sendall(self._encoded(), socket.MSG_NOSIGNAL)  # SIGPIPE may end the program
                asker.shutdown(socket.SHUT_WR)  # the end, also where a child that was forked meanwhile has a copy

    def _encoded(self) -> bytes:
        try:
            content = self._answer()
        except Exception as error:
            content = {"problem": f"{type(error).__name__}: {error}"}
        try:
            return json.dumps({"format": FORMAT, **content}).encode()
        except (TypeError, ValueError) as error:
            return json.dumps({"format": FORMAT, "problem": str(error)}).encode()


def snapshot(session: Any) -> dict[str, Any]:
    """What one session has to tell. Counters are those since ``enable``, whatever the program has reset."""
    from tierpage import __version__

    config, most = session.config, session.runtime.stalled_most()
    return {
        "version": __version__,
        "program": os.path.basename(str(sys.argv[0])) if sys.argv else "",
        "device": f"{config.device}:{config.device_index}",
        "device_name": config.in_force.get("device_name", ""),
        "at_seconds": time.monotonic(),
        "stats": session.runtime.stats(),
        "operators": most["operators"],
        "tags": most["tags"],
        "tag_places": session.runtime.tags(),
    }


_running: weakref.WeakSet[Publisher] = weakref.WeakSet()


def _after_fork() -> None:
    for publisher in list(_running):
        publisher.forget()


os.register_at_fork(after_in_child=_after_fork)
