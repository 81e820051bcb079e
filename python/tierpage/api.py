"""Switching tierpage on and off, and the hints that a program can give.

All functions may be called from any thread. ``pin``, ``prefetch``, ``evict`` and ``step`` do nothing while tierpage is
off, so that a program runs unchanged with and without it.
"""

from __future__ import annotations

import atexit
import dataclasses
import logging
import os
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from tierpage import native, storage, touching
from tierpage.config import ENVIRONMENT_NAME, Config, Request, parse_request
from tierpage.defaults import differences, in_force, resolve
from tierpage.errors import ConfigError, TierpageError, TierpageWarning
from tierpage.notices import NoticeThread
from tierpage.system import format_bytes

_log = logging.getLogger("tierpage")


class Session:
    """One enabled period: the engine, the library that feeds it, the replaced methods, the settings."""

    def __init__(self, config: Config, request: Request) -> None:
        module = native.engine_module()
        self.library = native.TorchLibrary.load()
        self.request = request
        self._steps = 0
        self._step_start: dict[str, float] = {}
        backend = storage.choose(config)
        with native.translated():
            self.runtime: Any = module.Runtime({**config.engine_options(), **backend.engine_options()})
        self.wrappers = touching.Wrappers(self._touch, self._hold)
        self.notices = NoticeThread(self.log_notices)
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
            self.wrappers.install()
            self.notices.start()
        except BaseException:
            if attached:
                self.library.detach()
            self._close_runtime()
            raise

    def _touch(self, storage: torch.UntypedStorage) -> None:
        address = self.library.storage_address(storage)
        if self._range.base <= address < self._range.end:
            self.library.touch(address)

    def _hold(self, storage: torch.UntypedStorage) -> None:
        address = self.library.storage_address(storage)
        if self._range.base <= address < self._range.end:
            self.library.hold(address)

    def end_step(self) -> None:
        """Counts a step and logs, at INFO, one line with what it moved and waited for."""
        self.runtime.step()
        self._steps += 1
        if not _log.isEnabledFor(logging.INFO):
            return
        stats = self.runtime.stats()
        now = {name: stats[name] for name in stats if name.startswith(("fetch_bytes", "writeback_bytes", "stall_seconds.total"))}
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

    def close(self) -> None:
        """Brings every page back and returns to plain torch. On failure everything stays as it was."""
        self.library.set_option("deferral", False)
        try:
            self.library.run_deferred(0)
            if self.config.device == "cuda" and self.library.counters()["updates.deferred"] > 0:
                torch.cuda.synchronize(self.config.device_index)  # nobody makes other streams wait for it any more
            self._close_runtime()
        except BaseException:
            self.library.set_option("deferral", self.config.defer_updates)
            raise
        self.notices.stop()
        self.wrappers.remove()
        self.library.detach()
        _retired.append(self)

    def address_of(self, tensor: torch.Tensor) -> int:
        """Address of the first byte of a tensor's storage, 0 without one. Fetches nothing."""
        storage = touching.storage_of(tensor)
        return self.library.storage_address(storage) if storage is not None else 0

    def addresses(self, things: Iterable[Any]) -> list[int]:
        """Addresses, each once, of the paged storages in tensors, modules, optimizers and containers of them."""
        found: dict[int, None] = {}
        for tensor in tensors_in(things):
            address = self.address_of(tensor)
            if self._range.base <= address < self._range.end:
                found[address] = None
        return list(found)


_lock = threading.RLock()
_session: Session | None = None
_retired: list[Session] = []  # ended, but tensors still live in their range
_forked_from: int | None = None  # in a forked child: the parent that had tierpage on
_tags = threading.local()
_UNTAGGED = "(untagged)"  # the engine takes an empty tag for the end of the scope


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
        session.notices.stop()
        session.runtime.shutdown()


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


class Pager:
    """What :func:`enable` returns. As a context manager it returns to the state before that call of ``enable``."""

    def __init__(self, session: Session, *, switched_on: bool) -> None:
        self._session = session
        self._switched_on = switched_on

    def __enter__(self) -> Pager:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if not self._switched_on:
            return
        try:
            self.disable()
        except TierpageError as failure:
            if error is None:
                raise
            error.add_note(f"tierpage stays enabled: {failure}")  # the first failure is the one to see

    @property
    def config(self) -> Config:
        """The settings of this pager and where each came from."""
        return self._session.config

    @property
    def active(self) -> bool:
        """True until this pager is disabled."""
        return _session is self._session

    def disable(self) -> None:
        """The same as :func:`tierpage.disable` while this pager is in force, nothing afterwards."""
        with _lock:
            if self.active:
                disable()

    def __repr__(self) -> str:
        state = "active" if self.active else "disabled"
        return f"<tierpage.Pager {state} on {self.config.device}:{self.config.device_index}>"


def enable(
    nvme_path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    *,
    device: str | torch.device | None = None,
    device_budget: int | float | str | None = None,
    host_budget: int | float | str | None = None,
    nvme_budget: int | float | str | None = None,
    min_paged_bytes: int | str | None = None,
    scope: str | None = None,
    paranoid: bool | None = None,
    nvme_write_budget: str | None = None,
    verify: str | None = None,
    storage_backend: str | None = None,
    encrypt: bool | None = None,
    **experimental: Any,
) -> Pager:
    """Switches tierpage on: tensors made from now on live in three tiers. Tensors made before stay where they are.

    Args:
        nvme_path: directory of the NVMe tier, on a local disk; a list of directories, one on each drive, stripes it
            over them. None: VRAM and RAM only.
        device: "cuda", "cuda:<index>" or "cpu". Default: the current CUDA device, "cpu" where there is none.
        device_budget: bytes, text ("20GiB"), or a fraction of the VRAM ("cpu": of RAM). Default: free VRAM less a
            margin; on "cpu" half of the available RAM.
        host_budget: the same for RAM. Default: available RAM or cgroup headroom less a margin, per local rank.
        nvme_budget: bytes, text, or a fraction of the free disk space. Default: half of the free space, at most 8
            times the two other budgets. The space is taken at once and given back when tierpage or the process ends.
        nvme_write_budget: bytes that should be written to the NVMe tier at most, "200GB/day" or "10GB/hour". Default: none.
        min_paged_bytes: smaller tensors stay with torch's own allocator. Default: 1 MiB.
        scope: "all", or "explicit": only tensors made inside ``with tierpage.paged()``.
        paranoid: evicts everything unpinned after each operator; finds missed accesses, very slow. For tests.
        verify: "read" checks what comes back from the disk (CorruptPageError), "full" also reads back what was written
            (StorageError), "off" checks nothing. Default: "read".
        storage_backend: "direct" (direct I/O through RAM), "kvikio" (an extension, see docs/tuning.md), or "auto":
            kvikio where drives reach the GPU's memory by themselves and that is faster, else direct.
        encrypt: encrypts what lies on the disk (AES-256-XTS) with a random key that only this process has. Default: off.
        **experimental: the further keys of docs/tuning.md.

    An argument that is None comes from the environment variable TIERPAGE_CONF, else from the default. Calling again
    with the same values does nothing.

    Raises:
        ConfigError: a value cannot work, or other values are in force. StorageFullError: the disk has less room.
        ImportError: the installed torch has no matching library. In every case the process is as it was.
    """
    arguments: dict[str, object] = dict(experimental)
    arguments.update(
        nvme_path=nvme_path, device=device, device_budget=device_budget, host_budget=host_budget,
        nvme_budget=nvme_budget, nvme_write_budget=nvme_write_budget, min_paged_bytes=min_paged_bytes, scope=scope, paranoid=paranoid,
        verify=verify, storage_backend=storage_backend, encrypt=encrypt,
    )  # fmt: skip
    with _lock:
        return _enable(parse_request(arguments, os.environ.get(ENVIRONMENT_NAME)))


def _enable(request: Request) -> Pager:
    global _session
    if _forked_from is not None:
        raise ConfigError(
            f"tierpage cannot be enabled in this forked child (process {os.getpid()}): its parent {_forked_from} has it "
            "on. Start the child with the 'spawn' method, or enable tierpage after the fork only."
        )
    if _session is not None:
        wrong = differences(_session.config, request, _session.request)
        if wrong:
            raise ConfigError(
                "tierpage is already enabled with other values: "
                + "; ".join(wrong)
                + ". Call tierpage.disable() first."
            )
        return Pager(_session, switched_on=False)
    config = resolve(request)
    _release_retired()
    session = Session(config, request)
    _session = session
    session.log_notices()
    for note in config.notes:
        warnings.warn(note, TierpageWarning, stacklevel=4)
    _log.info("enabled: %s", config)
    return Pager(session, switched_on=True)


def _release_retired() -> None:
    """Lets go of ended sessions whose last tensor has died."""
    for session in list(_retired):
        if session.runtime.alive_bytes() == 0:
            session.runtime.shutdown()
            _retired.remove(session)


def disable() -> None:
    """Brings every paged tensor back into device memory and returns to plain torch. Does nothing while off.

    Raises OutOfMemoryError where the live tensors do not fit, StorageError where they cannot be read; tierpage then
    stays on and nothing is lost.
    """
    global _session
    with _lock:
        if _session is None:
            return
        _session.log_notices()
        _session.close()
        _session = None
        _log.info("disabled")


def is_enabled() -> bool:
    """True while tierpage pages the tensors that are made."""
    return _session is not None


def config() -> Config:
    """The settings in force and where each came from. Raises TierpageError while tierpage is off."""
    return current().config


def set_budget(tier: str, size: int | float | str) -> None:
    """Changes a budget while running. ``tier``: "device" or "host"; ``size``: bytes, text or a fraction as in enable.

    Shrinking evicts first, and raises OutOfMemoryError where pinned pages leave no room for it.
    """
    if tier not in ("device", "host"):
        raise ConfigError(f"tier={tier!r} has no budget that can change: give 'device' or 'host'.")
    with _lock:
        session = current()
        other = "host_budget" if tier == "device" else "device_budget"
        now = session.config
        wanted = {"device": f"{now.device}:{now.device_index}", f"{tier}_budget": size, other: getattr(now, other)}
        count = int(getattr(resolve(parse_request(wanted, None)), f"{tier}_budget"))
        with native.translated():
            session.runtime.set_budget(tier, count)
        origins = {**session.config.origins, f"{tier}_budget": "set_budget"}
        values: dict[str, Any] = {f"{tier}_budget": count, "origins": origins}
        session.config = dataclasses.replace(session.config, **values)


@contextmanager
def paged(tag: str | None = None) -> Iterator[None]:
    """Tensors made by this thread inside the block are paged (also with scope="explicit") and carry ``tag``.

    Blocks nest; the innermost tag counts. Raises TierpageError while tierpage is off.
    """
    if tag is not None and (not isinstance(tag, str) or not tag):
        raise ConfigError(f"tag={tag!r} is not a name: give a non-empty text or None.")
    session = current()
    stack: list[str] = _tags.__dict__.setdefault("stack", [])
    stack.append(tag or _UNTAGGED)
    with native.translated():
        session.runtime.set_tag(stack[-1])
    try:
        yield
    finally:
        stack.pop()
        if _session is session:
            with native.translated():
                session.runtime.set_tag(stack[-1] if stack else None)


def pause(tag: str) -> int:
    """Moves the tensors made inside ``paged(tag)`` out of device memory and keeps them out; addresses stay.

    Returns the bytes moved. Using such a tensor before :func:`resume` brings its pages back. Raises TierpageError.
    """
    session = current()
    session.library.run_deferred(0)
    with native.translated():
        return int(session.runtime.pause(_tag(tag)))


def resume(tag: str) -> int:
    """Ends :func:`pause` and brings back what fits. Returns the bytes moved. Raises TierpageError."""
    with native.translated():
        return int(current().runtime.resume(_tag(tag)))


def _tag(tag: object) -> str:
    if not isinstance(tag, str) or not tag:
        raise ConfigError(f"tag={tag!r} is not a name: give the text that was given to tierpage.paged().")
    return tag


@contextmanager
def pin(*things: Any) -> Iterator[None]:
    """Keeps tensors, or those of modules and containers, in device memory during the block.

    For everything that no operator announces: raw pointers, CUDA graphs, hand-written kernels. Waits until they are
    there. Raises OutOfMemoryError where they do not fit the device budget together.
    """
    tensors = list(tensors_in(things))
    session = _session
    addresses = session.addresses(tensors) if session is not None else []
    if session is None or not addresses:
        yield
        return
    for address in addresses:
        session.library.run_deferred(address)
    with native.translated():
        handle = session.runtime.pin(addresses)
    try:
        yield
    finally:
        with native.translated():
            session.runtime.unpin(handle)


def prefetch(*things: Any) -> int:
    """Hint: these tensors are needed soon. Returns the bytes that began to move; never waits, never fails for room."""
    return _hint("prefetch", things)


def evict(*things: Any) -> int:
    """Hint: these tensors are not needed for long. Returns the bytes that began to move; pinned ones stay."""
    return _hint("evict", things)


def _hint(name: str, things: tuple[Any, ...]) -> int:
    tensors = list(tensors_in(things))
    session = _session
    if session is None:
        return 0
    with native.translated():
        return int(getattr(session.runtime, name)(session.addresses(tensors)))


def step() -> None:
    """Hint: one step of the program's outer loop ended here.

    Never needed: the predictor finds the period of a program itself. It marks the border for people: with the logger
    "tierpage" at INFO, one line tells what the step moved and waited for.
    """
    session = _session
    if session is not None:
        with native.translated():
            session.end_step()


def tensors_in(things: Iterable[Any]) -> Iterator[torch.Tensor]:
    """Every tensor in tensors, modules, optimizers, storages' containers (list, tuple, set, dict), nested.

    Raises ConfigError that names the type of anything else.
    """
    for thing in things:
        if isinstance(thing, torch.Tensor):
            yield thing
        elif isinstance(thing, torch.nn.Module):
            yield from thing.parameters()
            yield from thing.buffers()
        elif isinstance(thing, torch.optim.Optimizer):
            for state in thing.state.values():
                yield from (value for value in state.values() if isinstance(value, torch.Tensor))
        elif isinstance(thing, dict):
            yield from tensors_in(thing.values())
        elif isinstance(thing, Iterable) and not isinstance(thing, (str, bytes)):
            yield from tensors_in(thing)
        else:
            raise ConfigError(
                f"{type(thing).__name__} {thing!r:.80} holds no tensors: give tensors, modules, optimizers or containers of them."
            )
