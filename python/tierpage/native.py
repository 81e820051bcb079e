"""Loads the two native parts and joins them: the module ``_C`` (the engine) and the torch library (the interceptor).

The torch library is one shared object per torch minor version, named ``libtierpage_torch_<major>_<minor>.so`` and kept
beside ``_C``. Its exports are listed at the end of csrc/engine/engine_api.h.
"""

from __future__ import annotations

import ctypes
import importlib
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch

from tierpage import errors

TORCH_REQUIREMENT = "torch>=2.11,<2.14"
TORCH_FIRST, TORCH_LAST = (2, 11), (2, 13)
_LIBRARY = re.compile(r"libtierpage_torch_(\d+)_(\d+)\.so")
_COUNTERS = {"operators.seen": 0, "operators.paged": 1, "operators.split": 2, "raw_pointer_touches.count": 3,
             "updates.deferred": 4, "launches.guarded": 5}  # fmt: skip
Result = TypeVar("Result")


def torch_minor(version: str | None = None) -> tuple[int, int]:
    """(major, minor) of ``version``, by default of the torch that is imported."""
    major, minor = (version or torch.__version__).split(".")[:2]
    return int(major), int(re.match(r"\d+", minor).group())  # type: ignore[union-attr]


def package_folders() -> list[Path]:
    """Folders that hold the package's files: one when installed, two in an editable install."""
    package = sys.modules["tierpage"]
    return [Path(folder) for folder in package.__path__]


def find_module() -> Path | None:
    """The file of ``_C``, without importing it."""
    for folder in package_folders():
        for suffix in EXTENSION_SUFFIXES:
            if (folder / f"_C{suffix}").is_file():
                return folder / f"_C{suffix}"
    return None


def find_libraries() -> dict[tuple[int, int], Path]:
    """The torch libraries in the package by torch (major, minor)."""
    found = {}
    for folder in package_folders():
        for path in sorted(folder.glob("libtierpage_torch_*.so")):
            match = _LIBRARY.fullmatch(path.name)
            if match:
                found[int(match[1]), int(match[2])] = path
    return found


def mismatch() -> str | None:
    """Why this installation cannot work with the installed torch and Python, with the remedy; ``None`` if it can."""
    from tierpage import __version__

    rebuild = "pip install --no-build-isolation --force-reinstall --no-deps"
    if find_module() is None:
        others = [path.name for folder in package_folders() for path in folder.glob("_C.*.so")]
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        have = f"it was built for another Python ({', '.join(others)})" if others else "it has not been built"
        return (
            f"tierpage {__version__}: its native module is missing for Python {python}: {have}.\n"
            f"Run: {rebuild} tierpage    (in a source tree: {rebuild} .)"
        )
    libraries = find_libraries()
    if torch_minor() in libraries:
        return None
    built = ", ".join(f"{major}.{minor}" for major, minor in sorted(libraries)) or "no torch at all"
    newest = "{}.{}".format(*max(libraries)) if libraries else ""
    remedy = f'pip install "torch=={newest}.*"' if libraries else f'pip install "{TORCH_REQUIREMENT}"'
    otherwise = f"Or build tierpage for the installed torch, from its source tree: {rebuild} ."
    if not TORCH_FIRST <= torch_minor() <= TORCH_LAST:
        age = "older" if torch_minor() < TORCH_FIRST else "newer"
        otherwise = f"This release of tierpage needs {TORCH_REQUIREMENT}, and that torch is {age}."
    return (
        f"tierpage {__version__} was built for torch {built}, but torch {torch.__version__} is installed.\n"
        f"Run: {remedy}\n{otherwise}"
    )


def check() -> None:
    """Raises ImportError, with the remedy, where the built parts do not match Python or torch. Loads nothing."""
    problem = mismatch()
    if problem is not None:
        raise ImportError(problem)


def engine_module() -> ModuleType:
    """``tierpage._C``, imported on first use. Raises ImportError with the remedy."""
    check()
    try:
        return importlib.import_module("tierpage._C")
    except ImportError as error:
        raise ImportError(
            f"tierpage's native module {find_module()} does not load: {error}\n"
            "Likely cause: it was built on a newer system, or for another Python.\n"
            "Run: pip install --no-build-isolation --force-reinstall --no-deps tierpage"
        ) from error


@contextmanager
def translated() -> Iterator[None]:
    """Turns ``_C.EngineError`` into the classes of :mod:`tierpage.errors`."""
    engine_error = engine_module().EngineError
    try:
        yield
    except engine_error as error:
        code, message, system_error = (*error.args, 0, "", 0)[:3] if len(error.args) >= 3 else (10, str(error), 0)
        raise errors.make_error(int(code), str(message), int(system_error)) from None


class TorchLibrary:
    """The interceptor and allocator library for the installed torch, loaded once per process."""

    _loaded: TorchLibrary | None = None

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._library = ctypes.PyDLL(str(path))
        except OSError as error:
            raise ImportError(
                f"{path.name} does not load beside torch {torch.__version__}: {error}\n"
                "Run: pip install --no-build-isolation --force-reinstall --no-deps tierpage"
            ) from None
        self._declare()
        built_for = self._version().decode()
        if built_for != "{}.{}".format(*torch_minor()):
            raise ImportError(
                f"{path.name} was built for torch {built_for}, but torch {torch.__version__} is installed."
            )
        self._error_types = (ctypes.py_object * (errors.INTERNAL + 1))(*errors.class_table())  # type: ignore[misc]
        self._installed = False

    @classmethod
    def load(cls) -> TorchLibrary:
        """The library of this process. Raises ImportError with the remedy."""
        if cls._loaded is None:
            check()
            cls._loaded = cls(find_libraries()[torch_minor()])
        return cls._loaded

    @classmethod
    def loaded(cls) -> TorchLibrary | None:
        """The library if something has loaded it."""
        return cls._loaded

    def _declare(self) -> None:
        def function(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
            symbol = getattr(self._library, name)
            symbol.restype, symbol.argtypes = result, list(arguments)
            return symbol  # type: ignore[no-any-return]

        self._version = function("tierpage_torch_version", ctypes.c_char_p)
        self._install = function("tierpage_torch_install", ctypes.c_int32)
        self._take_up = function("tierpage_torch_take_up", ctypes.c_int32)
        self._attach = function("tierpage_torch_attach", ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p)
        self._detach = function("tierpage_torch_detach", None)
        self._last_error = function("tierpage_torch_last_error", ctypes.c_char_p)
        self._counter = function("tierpage_torch_counter", ctypes.c_uint64, ctypes.c_int32)
        self.touch = function("tierpage_torch_touch", ctypes.c_int32, ctypes.c_uint64)
        self.note_stream = function("tierpage_torch_note_stream", ctypes.c_int32, ctypes.c_uint64)
        self.ask_works = function("tierpage_torch_ask_works", None)
        self.end_batch = function("tierpage_torch_end_batch", None)
        self.view = function("tierpage_torch_view", None, ctypes.c_uint64, ctypes.c_int32)
        self.watch_capsule = function("tierpage_torch_watch_capsule", ctypes.c_int32, ctypes.c_uint64, ctypes.py_object)
        self._fill_storage = function(
            "tierpage_torch_fill_storage", ctypes.c_int32, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64
        )
        self.run_deferred = function("tierpage_torch_run_deferred", ctypes.c_int32, ctypes.c_uint64)
        self._set_option = function("tierpage_torch_set_option", ctypes.c_int32, ctypes.c_char_p, ctypes.c_int32)
        self._open_guard = function("tierpage_torch_open_guard", ctypes.c_char_p)
        self.close_guard = function("tierpage_torch_close_guard", ctypes.c_int32)
        self._storage_address = function("tierpage_torch_storage_address", ctypes.c_uint64, ctypes.c_uint64)

    def _check(self, code: int) -> None:
        if code != errors.OK:
            raise errors.make_error(code, (self._last_error() or b"").decode(errors="replace"))

    def attach(self, engine_api: int) -> None:
        """Routes operators and allocations to the engine whose ``tp_engine_api`` is at this address."""
        if not self._installed:
            self._check(self._install())
            self._installed = True
        self._check(self._attach(engine_api, ctypes.addressof(self._error_types)))

    def take_up(self) -> None:
        """Sees to operators that libraries have registered since. What fails is tried again by the next operator."""
        self._take_up()

    def set_option(self, name: str, value: bool) -> None:
        """Switches a behaviour of the library that csrc/engine/engine_api.h lists."""
        self._check(self._set_option(name.encode(), int(value)))

    def open_guard(self) -> str:
        """Looks at every launch of this process from now on. Returns ``""``, or why that cannot be."""
        return str((self._open_guard() or b"").decode(errors="replace"))

    def detach(self) -> None:
        """Back to plain torch; tensors that are paged keep their memory until they are freed."""
        self._detach()

    def counters(self) -> dict[str, int]:
        """Operators seen, with paged arguments, split, raw pointers touched, and indices deferred, since the process began."""
        return {name: int(self._counter(which)) for name, which in _COUNTERS.items()}

    def storage_address(self, storage: torch.UntypedStorage) -> int:
        """Address of a storage's first byte, or 0 without one. Fetches nothing."""
        return int(self._storage_address(storage._cdata))

    def fill_storage(self, storage: torch.UntypedStorage, place: int, size: int) -> None:
        """Gives an empty storage ``size`` bytes whose content lies at ``place`` in a source. Reads nothing yet."""
        self._fill_storage(storage._cdata, place, size)


class EngineApi:
    """Reads the constants at the head of a ``tp_engine_api``: the reserved range of addresses."""

    class _Head(ctypes.Structure):
        _fields_ = [
            ("version", ctypes.c_uint32),
            ("size", ctypes.c_uint32),
            ("range_base", ctypes.c_uint64),
            ("range_bytes", ctypes.c_uint64),
        ]

    VERSION = 11

    def __init__(self, address: int) -> None:
        head = self._Head.from_address(address)
        if head.version != self.VERSION:
            raise ImportError(
                f"tierpage's native module has interface {head.version}, this package needs {self.VERSION}: "
                "files of two versions are mixed. Run: pip install --force-reinstall --no-deps tierpage"
            )
        self.base = int(head.range_base)
        self.end = self.base + int(head.range_bytes)
