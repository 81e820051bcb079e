"""``file_backed``: ``from_pretrained`` makes weights whose clean copy is the checkpoint's file.

Two names of transformers are replaced while a block is open: the method that loads the weights, which knows device,
quantizer and files, and ``safe_open``, through which it reads them. Both are there in 4.57 and in 5. Whatever differs
from what is expected leaves the load to transformers, with a warning that says why.
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from transformers import __version__ as _version
from transformers import modeling_utils

from tierpage._checkpoint.tensors import paged_device
from tierpage._transformers.files import Load
from tierpage.callers import caller_outside
from tierpage.errors import TierpageWarning
from tierpage.session import Session, current, current_or_none

__all__ = ["file_backed"]

_log = logging.getLogger("tierpage")

_METHOD = "_load_pretrained_model"
_OPEN = "safe_open"
_NOT_THE_CALLER = ("tierpage", "transformers", "contextlib")
_asked: ContextVar[bool] = ContextVar("tierpage_file_backed", default=False)
_load: ContextVar[Load | None] = ContextVar("tierpage_load", default=None)


@contextmanager
def file_backed() -> Iterator[None]:
    """Inside the block this thread's ``from_pretrained`` makes weights that are read when they are used.

    As with :func:`tierpage.load`, a tensor of at least ``min_paged_bytes`` gets addresses and a place in its file, and
    nothing of it is read. The parameters have the bits, shapes, dtypes and ties that ``from_pretrained`` gives without
    the block. What is converted (another ``dtype``, experts that are merged) is read meanwhile and becomes ordinary
    paged memory. The files must stay as they are while the model is in use; replacing or deleting them is fine.

    ``device_map`` must name the paged device; on the CPU it may be left out. A load that cannot be file-backed is
    transformers' own, and a TierpageWarning says why: another device or several, a quantizer that converts while it
    loads, tensor parallelism, files of other formats, a transformers that loads in another way.

    ``from_pretrained`` raises ConfigError where ``host_budget`` leaves no room for the staging buffers.

    Raises:
        TierpageError: tierpage is off.
    """
    current()
    with _Doors.open():
        token = _asked.set(True)
        try:
            yield
        finally:
            _asked.reset(token)


class _Doors:
    """The replaced names of transformers. Blocks of several threads share them; the last puts the originals back."""

    _lock = threading.Lock()
    _users = 0
    _undo: list[tuple[Any, str, Any, Any]] = []  # owner, name, original, replacement

    @classmethod
    @contextmanager
    def open(cls) -> Iterator[None]:
        with cls._lock:
            cls._users += 1
            if cls._users == 1:
                cls._install()
        try:
            yield
        finally:
            with cls._lock:
                cls._users -= 1
                if cls._users == 0:
                    cls._remove()

    @classmethod
    def _install(cls) -> None:
        model = getattr(modeling_utils, "PreTrainedModel", None)
        method = getattr(model, "__dict__", {}).get(_METHOD)
        opens = getattr(modeling_utils, _OPEN, None)
        if not isinstance(method, (classmethod, staticmethod)) or not callable(opens):
            _say(f"transformers {_version} has another way to load weights than is known here")
            return
        cls._replace(model, _METHOD, method, type(method)(_around_method(method.__func__)))
        cls._replace(modeling_utils, _OPEN, opens, _around_open(opens))

    @classmethod
    def _replace(cls, owner: Any, name: str, original: Any, replacement: Any) -> None:
        setattr(owner, name, replacement)
        cls._undo.append((owner, name, original, replacement))

    @classmethod
    def _remove(cls) -> None:
        """Unless somebody else has replaced them meanwhile."""
        for owner, name, original, replacement in reversed(cls._undo):
            if owner.__dict__.get(name) is replacement:
                setattr(owner, name, original)
        cls._undo.clear()


def _around_open(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original, updated=())
    def opened(path: Any, *args: Any, **kwargs: Any) -> Any:
        file = original(path, *args, **kwargs)
        load = _load.get()
        return file if load is None else load.around(file, path)

    return opened


def _around_method(original: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(original)

    @functools.wraps(original)
    def loaded(*args: Any, **kwargs: Any) -> Any:
        if not _asked.get():
            return original(*args, **kwargs)
        session = current_or_none()
        try:
            reason = _reason(session, _Arguments(signature.bind(*args, **kwargs)))
        except _UnknownError as error:
            reason = f"transformers {_version} has another way to load weights than is known here: {error}"
        if session is None or reason:
            _say(reason)
            return original(*args, **kwargs)
        return _with_files(session, functools.partial(original, *args, **kwargs))

    return loaded


def _with_files(session: Session, original: Callable[[], Any]) -> Any:
    with Load(session) as load:
        token = _load.set(load)
        try:
            result = original()
        finally:
            _load.reset(token)
    for reason in load.refusals.values():
        _say(reason)
    if load.tensors == 0 and not load.refusals:
        _say(
            f"transformers {_version} took no tensor from the files by itself (disable_mmap, a folder that is mounted, "
            "or a loader with threads of its own)"
        )
    _log.info("from_pretrained: %d tensors from their files", load.tensors)
    return result


class _UnknownError(Exception):
    """Transformers lacks what the decision needs."""


class _Arguments:
    """Arguments of the method by name: they stand in its signature (4.5x) or in an object ``load_config`` (5)."""

    def __init__(self, bound: inspect.BoundArguments) -> None:
        bound.apply_defaults()
        self._arguments = bound.arguments

    def __getitem__(self, name: str) -> Any:
        if name in self._arguments:
            return self._arguments[name]
        try:
            return getattr(self._arguments["load_config"], name)
        except (KeyError, AttributeError):
            raise _UnknownError(f"there is no {name}") from None


def _reason(session: Session | None, given: Any) -> str:
    """Why this load is left to transformers; empty: it need not be."""
    if session is None:
        return "tierpage is off"
    files = given["checkpoint_files"] or []
    if given["state_dict"] is not None or not files:
        return "the weights were given as a state_dict"
    other = [os.path.basename(file) for file in files if not os.fspath(file).endswith(".safetensors")]
    if other:
        return f"'{other[0]}' is not a safetensors file"
    quantizer = given["hf_quantizer"]
    if quantizer is not None and getattr(quantizer, "pre_quantized", None) is not True:
        return f"{type(quantizer).__name__} converts the weights while they are loaded"
    if given["device_mesh"] is not None:
        return "tensor parallelism takes parts of each tensor"
    return _wrong_device(paged_device(session), given["device_map"])


def _wrong_device(paged: torch.device, device_map: Any) -> str:
    if device_map is None:
        places = {torch.device("cpu")}
    elif not isinstance(device_map, dict):
        raise _UnknownError(f"device_map is a {type(device_map).__name__}")
    elif "disk" in device_map.values():
        return "device_map offloads to the disk, which tierpage does by itself: leave that out"
    else:
        places = {_device(place) for place in device_map.values()}
    if places == {paged}:
        return ""
    names = " and ".join(sorted(map(str, places)))
    return f"the weights go to {names}, and tierpage pages {paged}: give device_map='{paged}'"


def _device(place: Any) -> torch.device:
    device = torch.device("cuda", place) if isinstance(place, int) else torch.device(place)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _say(reason: str) -> None:
    """Warns where the caller stands: the first frame outside of transformers and this package."""
    warnings.warn(
        f"from_pretrained reads weights in transformers' own way, not from their files on use: {reason.rstrip('.')}.",
        TierpageWarning,
        stacklevel=caller_outside(*_NOT_THE_CALLER).level,
    )
