"""Switching tierpage on and off, and the hints that a program can give.

All functions may be called from any thread. ``pin``, ``prefetch``, ``evict`` and ``step`` do nothing while tierpage is
off, so that a program runs unchanged with and without it; ``paged``, ``pause`` and ``resume`` are errors then.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from tierpage import memory, native, notebook
from tierpage.containers import tensors_in
from tierpage.defaults import differences, resolve
from tierpage.errors import ConfigError, TierpageError, TierpageWarning
from tierpage.session import (
    Session,
    changing,
    current,
    current_or_none,
    forked_from,
    release_retired,
    start_session,
    stop_session,
)
from tierpage.settings import COMMAND_LINE, ENVIRONMENT_NAME, SETTINGS, Config, Request, parse_request
from tierpage.system import format_bytes

_log = logging.getLogger("tierpage")

_tags = threading.local()
_UNTAGGED = "(untagged)"  # the engine takes an empty tag for the end of the scope


class Pager:
    """The public name of a running pager: what :func:`enable` returns.

    As a context manager it returns to the state before that call of ``enable``. Calls of ``enable`` with the same values
    return several that stand for the same pager. As the last value of a notebook's cell it is shown as a table.
    """

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
        return current_or_none() is self._session

    def disable(self) -> None:
        """The same as :func:`tierpage.disable` while this pager is in force, nothing afterwards."""
        with changing():
            if self.active:
                disable()

    def __repr__(self) -> str:
        return f"<tierpage.Pager {self._state()}>"

    def _repr_html_(self) -> str:
        """What a notebook shows: the tiers at this moment, and the settings."""
        stats = memory.memory_stats() if self.active else {}
        parts: list[object] = [f"tierpage, {self._state()}"]
        if stats:
            parts.append(_tiers_with_bars(stats))
            parts.append(f"waited {stats['stall_seconds.total']:.3f} s in {stats['faults.count']} faults")
        parts.append(notebook.folded("Settings", _settings_table(self.config)))
        return notebook.page_of(parts)

    def _state(self) -> str:
        state = "active" if self.active else "disabled"
        return f"{state} on {self.config.device}:{self.config.device_index}"


def _tiers_with_bars(stats: Mapping[str, int | float]) -> list[tuple[object, ...]]:
    head, *rows = memory.tier_table(stats)
    bars = [
        notebook.share_bar(stats[f"resident_bytes.{tier}.current"], stats[f"budget_bytes.{tier}"])
        for tier in memory.TIERS
    ]
    return [(*head, "used"), *((*row, bar) for row, bar in zip(rows, bars, strict=True))]


def _settings_table(config: Config) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = [("setting", "value", "from")]
    for name in SETTINGS:
        value = config.in_force.get(name, getattr(config, name))  # what the engine has chosen
        shown = format_bytes(value) if name.endswith("_budget") and isinstance(value, int) else str(value)
        rows.append((name, shown, config.origins.get(name, "default")))
    return rows


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
        ConfigError: a value cannot work, or other values are in force.
        StorageFullError: the disk has less room.
        ImportError: the installed torch has no matching library.
        TierpageWarning: a filter of :mod:`warnings` turns what it warns of into an error.

    Whatever it raises, the process is as it was.
    """
    arguments: dict[str, object] = dict(experimental)
    arguments.update(
        nvme_path=nvme_path, device=device, device_budget=device_budget, host_budget=host_budget,
        nvme_budget=nvme_budget, nvme_write_budget=nvme_write_budget, min_paged_bytes=min_paged_bytes, scope=scope, paranoid=paranoid,
        verify=verify, storage_backend=storage_backend, encrypt=encrypt,
    )  # fmt: skip
    return enable_request(parse_request(arguments, os.environ.get(ENVIRONMENT_NAME)))


def enable_request(request: Request) -> Pager:
    """What :func:`enable` does once the arguments have been read; raises the same, but for unreadable arguments."""
    with changing():
        return _enable(request)


def _enable(request: Request) -> Pager:
    parent = forked_from()
    if parent is not None:
        raise ConfigError(
            f"tierpage cannot be enabled in this forked child (process {os.getpid()}): its parent {parent} has it "
            "on. Start the child with the 'spawn' method, or enable tierpage after the fork only."
        )
    session = current_or_none()
    if session is not None:
        wrong = differences(session.config, request, session.request)
        if wrong:
            remedy = "Call tierpage.disable() first."
            if session.request.asker == COMMAND_LINE:
                remedy = "`tierpage run` did that: give it these values, or start this program without it."
            raise ConfigError(f"tierpage is already enabled with other values: {'; '.join(wrong)}. {remedy}")
        return Pager(session, switched_on=False)
    config = resolve(request)
    release_retired()
    session = start_session(config, request)
    try:
        session.log_notices()
        for note in (*config.notes, *session.offloads.standing()):
            warnings.warn(note, TierpageWarning, stacklevel=4)
        _log.info("enabled: %s", config)
    except BaseException:  # such as a warning that a filter has turned into an error, or Ctrl-C
        stop_session(session)
        raise
    return Pager(session, switched_on=True)


def disable() -> None:
    """Brings every paged tensor back into device memory and returns to plain torch. Does nothing while off.

    Raises:
        OutOfMemoryError: the live tensors do not fit.
        StorageError: they cannot be read.

    tierpage then stays on and nothing is lost.
    """
    with changing():
        session = current_or_none()
        if session is None:
            return
        session.log_notices()
        stop_session(session)
        _log.info("disabled")


def is_enabled() -> bool:
    """True while tierpage pages the tensors that are made."""
    return current_or_none() is not None


def config() -> Config:
    """The settings in force and where each came from.

    Raises:
        TierpageError: tierpage is off.
    """
    return current().config


def set_budget(tier: str, size: int | float | str) -> None:
    """Changes a budget while running.

    Returns at once. Under a smaller budget pages leave as they can, and the memory goes back to the device or the system. What
    is pinned or in use stays until it is not: meanwhile operators that do not fit raise OutOfMemoryError, this call does not.

    Args:
        tier: "device" or "host".
        size: bytes, text ("20GiB") or a fraction, as in :func:`enable`.

    Raises:
        TierpageError: tierpage is off.
        ConfigError: there is no such tier, or the size cannot work.
    """
    if tier not in ("device", "host"):
        raise ConfigError(f"tier={tier!r} has no budget that can change: give 'device' or 'host'.")
    with changing():
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

    Blocks nest; the innermost tag counts.

    Raises:
        TierpageError: tierpage is off.
        ConfigError: the tag is no text, or empty.
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
        if current_or_none() is session:
            with native.translated():
                session.runtime.set_tag(stack[-1] if stack else None)


def pause(tag: str) -> int:
    """Moves the tensors made inside ``paged(tag)`` out of device memory, gives it back to the device, and keeps them out.

    Waits until they have left, and returns the bytes that did. Addresses stay; pinned tensors and those that an operator
    uses now stay where they are. It is no lock: a tensor comes back when an operator uses it. Until then, or until
    :func:`resume`, no prediction and no :func:`prefetch` brings it back. The memory is the device's on return; to keep the
    program's other tensors from taking it again, lower :func:`set_budget`.

    A tag that no living tensor carries gives 0: all of them may have died, or been too small to be paged.

    Raises:
        TierpageError: tierpage is off.
        ConfigError: the tag is no text, or empty, or nobody ever gave it to :func:`paged`.
        PagerDeadError: an earlier failure stopped the pager, or one that came meanwhile.
        InternalError: none of them left for a minute.
    """
    session = current()
    session.library.run_deferred(0)
    session.library.ask_works()
    with native.translated():
        return int(session.runtime.pause(_tag(tag)))


def resume(tag: str) -> int:
    """Hint: the tensors made inside ``paged(tag)`` are needed soon, after :func:`pause` or without it.

    Returns the bytes that are not in device memory and begin to move, as far as they fit; never waits. 0 for a tag that no
    living tensor carries.

    Raises:
        TierpageError: tierpage is off.
        ConfigError: the tag is no text, or empty, or nobody ever gave it to :func:`paged`.
    """
    session = current()
    with native.translated():
        return int(session.runtime.resume(_tag(tag)))


def _tag(tag: object) -> str:
    if not isinstance(tag, str) or not tag:
        raise ConfigError(f"tag={tag!r} is not a name: give the text that was given to tierpage.paged().")
    return tag


@contextmanager
def pin(*things: Any) -> Iterator[None]:
    """Keeps tensors, or those of modules and containers, in device memory during the block.

    For everything that no operator announces: raw pointers, CUDA graphs, hand-written kernels. Waits until they are
    there. Work that is queued on the current stream when the block ends is waited for before they leave.

    What does not fit the device budget lies in RAM meanwhile. Does nothing while tierpage is off.

    Raises:
        OutOfMemoryError: RAM has no room for what does not fit, or ``overflow="off"``.
        ConfigError: one of ``things`` holds no tensors.
    """
    tensors = list(tensors_in(things))
    session = current_or_none()
    addresses = session.addresses(tensors) if session is not None else []
    if session is None or not addresses:
        yield
        return
    for address in addresses:
        session.library.run_deferred(address)
    session.library.ask_works()
    with native.translated():
        handle = session.runtime.pin(addresses)
    try:
        yield
    finally:
        for address in addresses:
            session.library.note_stream(address)
        with native.translated():
            session.runtime.unpin(handle)


def prefetch(*things: Any) -> int:
    """Hint: these tensors are needed soon. Returns the bytes that began to move; never waits, never fails for room.

    What :func:`pause` keeps out stays out. Does nothing while tierpage is off.

    Raises:
        ConfigError: one of ``things`` holds no tensors.
    """
    return _hint("prefetch", things)


def evict(*things: Any) -> int:
    """Hint: these tensors are not needed for long. Waits until they have left, and returns the bytes; pinned ones stay.

    Does nothing while tierpage is off.

    Raises:
        PagerDeadError, InternalError: as :func:`pause`.
        ConfigError: one of ``things`` holds no tensors.
    """
    return _hint("evict", things)


def _hint(name: str, things: tuple[Any, ...]) -> int:
    tensors = list(tensors_in(things))
    session = current_or_none()
    if session is None:
        return 0
    session.library.ask_works()
    with native.translated():
        return int(getattr(session.runtime, name)(session.addresses(tensors)))


def step() -> None:
    """Writes a line to the log: what was moved and waited for since the last call, one step of the program's outer loop.

    For people only, with the logger "tierpage" at INFO. The pager learns nothing from it: it finds the period of a program
    itself. Does nothing while tierpage is off.
    """
    session = current_or_none()
    if session is not None:
        with native.translated():
            session.end_step()
