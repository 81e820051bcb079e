"""Takes operators up as soon as a library has registered them, so that their very first call is seen like any other.

The dispatcher tells of new operators while it holds its lock, so the torch library can only note that there are some. The
next operator takes them up; where that is one of the new ones, its first call would be missed. While tierpage is enabled
the ways in which Python loads libraries and registers operators are therefore replaced by functions that take them up at
the end. A library that C++ code loads past Python still has to wait for the next operator.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from importlib.machinery import ExtensionFileLoader
from typing import Any

import torch

__all__ = ["LoadWatch"]

# (class, names): what may have registered operators or kernels when it returns.
_CALLS: tuple[tuple[type, tuple[str, ...]], ...] = (
    (ctypes.CDLL, ("__init__",)),  # torch.ops.load_library as well
    (ExtensionFileLoader, ("create_module", "exec_module")),
    (torch.library.Library, ("define", "impl")),
)


class LoadWatch:
    """The replaced methods. ``install`` and ``remove`` may be called repeatedly."""

    def __init__(self, take_up: Callable[[], None]) -> None:
        self._take_up = take_up
        self._undo: list[tuple[type, str, Any]] = []

    def install(self) -> None:
        """Replaces the methods."""
        if self._undo:
            return
        for owner, names in _CALLS:
            for name in names:
                self._undo.append((owner, name, owner.__dict__[name]))
                setattr(owner, name, self._around(owner.__dict__[name]))

    def remove(self) -> None:
        """Puts the originals back, unless somebody else has replaced them meanwhile."""
        for owner, name, original in self._undo:
            if getattr(owner.__dict__[name], "_tierpage_watch", None) is self:
                setattr(owner, name, original)
        self._undo.clear()

    def _around(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def watched(*args: Any, **kwargs: Any) -> Any:
            try:
                return original(*args, **kwargs)
            finally:
                self._take_up()

        watched._tierpage_watch = self  # type: ignore[attr-defined]
        return watched
