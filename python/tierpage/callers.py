"""Finds the program's own line behind a call that libraries have passed on, for warnings that point at it."""

from __future__ import annotations

import inspect
from typing import NamedTuple

__all__ = ["Caller", "caller_outside"]


class Caller(NamedTuple):
    """``level``: the ``stacklevel`` with which a warning of whoever asked names the line. ``called``: the libraries'
    public functions that are under way, the one that the line calls first."""

    level: int
    called: tuple[str, ...]


def caller_outside(*packages: str) -> Caller:
    """The first frame that belongs to none of these top-level packages. Where all do, the outermost."""
    frame = inspect.currentframe()
    frame = frame.f_back if frame is not None else None
    level, called = 1, []
    while (
        frame is not None
        and frame.f_back is not None
        and str(frame.f_globals.get("__name__")).split(".")[0] in packages
    ):
        name = frame.f_code.co_name
        if not name.startswith(("_", "<")):
            called.append(name)
        frame, level = frame.f_back, level + 1
    return Caller(level, tuple(reversed(called)))
