"""What lives between ``enable`` and ``disable``, and which of these is in force.

Three words for a running pager, each for one layer:

``tierpage.Pager``  the public handle that ``enable`` returns; several may stand for one session
``Session``         private: the Python side of one enabled period, which owns all the rest
``_C.Runtime``      private: the native engine of one session (C++ ``tierpage::Runtime``)
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from tierpage import native, page_code, storage, touching
from tierpage._top.publishing import Publisher, snapshot
from tierpage.containers import tensors_in
from tierpage.defaults import in_force
from tierpage.errors import OutOfMemoryError, TierpageError
from tierpage.launches import LaunchGuard
from tierpage.loading import LoadWatch
from tierpage.offloaders import OffloadWatch
from tierpage.settings import Config, Request
from tierpage.system import format_bytes
from tierpage.ticker import Ticker

if TYPE_CHECKING:
    from tierpage import _C

__all__ = [
    "Session",
    "changing",
    "current",
    "current_or_none",
    "forked_from",
    "release_retired",
    "start_session",
    "stop_session",
]

_log = logging.getLogger("tierpage")


class Session:
    """One enabled period: the engine, the library that feeds it, the replaced methods, the settings."""

    def __init__(self, config: Config, request: Request) -> None:
        module = native.engine_module()
        self.library = native.TorchLibrary.load()
        self.launch_guard = LaunchGuard(self.library, self._note_guard)
        self.request = request
        self._steps = 0
        self._step_start: dict[str, float] = {}
        backend = storage.choose(config)
        with native.translated():
            self.runtime: _C.Runtime = module.Runtime(
                {**config.engine_options(), **backend.engine_options(), **page_code.engine_options(config)}
            )
        self.wrappers = touching.Wrappers(self.library, self._is_paged)
        self.loads = LoadWatch(self.library.take_up)
        self.offloads = OffloadWatch(
            config.device if config.device == "cpu" else f"{config.device}:{config.device_index}"
        )
        self.notices = Ticker("tierpage-notices", self.log_notices)
        self.publisher = Publisher(lambda: snapshot(self))
        attached = False
        try:
            with native.translated():
                chosen = {"storage_backend": backend.name, "storage_reason": backend.reason}
                self.config = in_force(config, {**self.runtime.config(), **chosen})
                address = self.runtime.engine_api()
            self._range = native.EngineApi(address)
            self.library.set_option("deferral", config.defer_updates)
            self.library.attach(address)
            attached = True
            if config.device == "cuda" and config.launch_guard:
                self.launch_guard.open()
            self.wrappers.install()
            self.loads.install()
            self.offloads.install()
            self.notices.start()
            if config.top:
                self.publisher.start()
        except BaseException:
            self.publisher.stop()
            self.notices.stop()
            self.offloads.remove()
            self.loads.remove()
            self.wrappers.remove()
            if attached:
                self.launch_guard.close()
                self.library.detach()
            self._close_runtime()
            raise

    def _note_guard(self, state: str) -> None:
        self.config = in_force(self.config, {**self.config.in_force, "launch_guard": state})

    def _is_paged(self, address: int) -> bool:
        return self._range.base <= address < self._range.end

    @property
    def range(self) -> tuple[int, int]:
        """The addresses in which paged tensors lie: the first, and the one behind the last."""
        return self._range.base, self._range.end

    def end_step(self) -> None:
        """Counts a step and logs, at INFO, one line with what it moved and waited for."""
        self._steps += 1
        if not _log.isEnabledFor(logging.INFO):
            return
        stats = self.runtime.stats()
        now = {
            name: stats[name]
            for name in stats
            if name.startswith(("fetch_bytes", "writeback_bytes", "stall_seconds.total"))
        }
        since = {name: value - self._step_start.get(name, 0) for name, value in now.items()}
        self._step_start = now
        up = sum(value for name, value in since.items() if name.startswith("fetch_bytes"))
        down = sum(value for name, value in since.items() if name.startswith("writeback_bytes"))
        _log.info(
            "step %d: fetched %s, wrote back %s, waited %.3f s, device peak %s",
            self._steps, format_bytes(up), format_bytes(down), since["stall_seconds.total"],
            format_bytes(stats["resident_bytes.device.peak"]),
        )  # fmt: skip

    def _close_runtime(self) -> None:
        with native.translated():
            self.runtime.close()

    def log_notices(self) -> None:
        """Passes what the engine has to say (fall-backs, each once) to the logger."""
        for line in filter(None, str(self.runtime.take_notices()).splitlines()):
            _log.warning(line)

    def _settle(self) -> bool:
        """Runs what is deferred. ``False``: some of it fits into no budget, and can run once every page is back."""
        try:
            self.library.run_deferred(0)
        except OutOfMemoryError:
            return False
        if self.config.device == "cuda" and self.library.counters()["updates.deferred"] > 0:
            torch.cuda.synchronize(self.config.device_index)  # nobody makes other streams wait for it any more
        return True

    def close(self) -> None:
        """Brings every page back and returns to plain torch. On failure everything stays as it was."""
        self.library.set_option("deferral", False)
        try:
            settled = self._settle()
            self._close_runtime()
            if not settled:
                self._settle()
        except BaseException:
            self.library.set_option("deferral", self.config.defer_updates)
            raise
        self.publisher.stop()
        self.notices.stop()
        self.launch_guard.close()
        self.offloads.remove()
        self.loads.remove()
        self.wrappers.remove()
        self.library.detach()

    def address_of(self, tensor: torch.Tensor) -> int:
        """Address of the first byte of a tensor's storage, 0 without one. Fetches nothing."""
        storage = touching.storage_of(tensor)
        return self.library.storage_address(storage) if storage is not None else 0

    def addresses(self, things: Iterable[Any]) -> list[int]:
        """Addresses, each once, of the paged storages in tensors, modules, optimizers and containers of them."""
        found: dict[int, None] = {}
        for tensor in tensors_in(things):
            address = self.address_of(tensor)
            if self._is_paged(address):
                found[address] = None
        return list(found)


_lock = threading.RLock()
_session: Session | None = None
_retired: list[Session] = []  # ended, but tensors still live in their range
_forked_from: int | None = None  # in a forked child: the parent that had tierpage on


@contextmanager
def changing() -> Iterator[None]:
    """Inside the block no other thread starts, stops or changes a session. Blocks nest."""
    with _lock:
        yield


def start_session(config: Config, request: Request) -> Session:
    """A new session, in force from now on. Raises what its parts raise; nothing has changed then. In :func:`changing`."""
    global _session
    _session = Session(config, request)
    return _session


def stop_session(session: Session) -> None:
    """Closes the session in force; on failure it stays in force. In :func:`changing`."""
    global _session
    session.close()
    _retired.append(session)
    _session = None


def release_retired() -> None:
    """Lets go of ended sessions whose last tensor has died."""
    for session in list(_retired):
        if session.runtime.alive_bytes() == 0:
            _retired.remove(session)  # its thread gives the last frames back, and ends by itself


def current() -> Session:
    """The session in force. Raises TierpageError while tierpage is off."""
    session = _session
    if session is None:
        if _forked_from is not None:
            raise TierpageError(
                f"tierpage is off in this forked child of process {_forked_from}: a pager does not survive fork. "
                "Use the paged tensors in the parent, or start the child with the 'spawn' method."
            )
        raise TierpageError("tierpage is not enabled: call tierpage.enable(nvme_path=...) first.")
    return session


def current_or_none() -> Session | None:
    """The session in force, ``None`` while tierpage is off."""
    return _session


def forked_from() -> int | None:
    """In a forked child: the process id of the parent that had tierpage on. ``None`` in every other process."""
    return _forked_from


def _after_fork() -> None:
    """In the child: the pager's threads are gone, so tierpage is off and its objects are left alone.

    The wrappers stay: they raise a clear error for a tensor of the parent, where torch itself would read no memory.
    """
    global _lock, _session, _forked_from
    _lock = threading.RLock()
    if _session is not None:
        _forked_from = os.getppid()
        _session = None


os.register_at_fork(after_in_child=_after_fork)


@atexit.register
def _at_exit() -> None:
    """Stops the pager's threads. Nothing is fetched: the spill file has no name, the memory goes with the process."""
    for session in [*_retired, *([_session] if _session is not None else [])]:
        session.publisher.stop()
        session.notices.stop()
        session.runtime.shutdown()
