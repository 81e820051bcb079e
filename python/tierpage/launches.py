"""The launch guard from Python's side: whether every launch of the process is looked at, and who has CUPTI otherwise.

CUPTI before 13.3 has one user in a process. A profiler goes first: the guard steps aside before torch's profiler starts
for the first time, and stays aside, since the profiler keeps CUPTI.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch.autograd.profiler

from tierpage.native import TorchLibrary

__all__ = ["LaunchGuard"]

_log = logging.getLogger("tierpage")
_DOOR = (
    "_prepare_profiler"  # what torch.profiler and torch.autograd.profiler call before anything of CUPTI is asked for
)


class LaunchGuard:
    """Opened with a session on a CUDA device, closed with it or by a profiler. ``tell`` hears how it stands, in words."""

    def __init__(self, library: TorchLibrary, tell: Callable[[str], None]) -> None:
        self._library = library
        self._tell = tell
        self._original: Any = None
        self._wrapper: Any = None

    def open(self) -> None:
        """Looks at launches from now on, or says, in the log too, why that cannot be."""
        refusal = self._library.open_guard()
        self._tell(f"off: {refusal}" if refusal else "on")
        if refusal:
            _log.warning("launches are not looked at: %s. docs/limits.md says what that means.", refusal)
            return
        self._original = original = getattr(torch.autograd.profiler, _DOOR)

        @functools.wraps(original)
        def prepare(*args: Any, **kwargs: Any) -> Any:
            self._step_aside()
            return original(*args, **kwargs)

        self._wrapper = prepare
        setattr(torch.autograd.profiler, _DOOR, prepare)

    def close(self) -> None:
        """Gives CUPTI back. What recorded CUDA graphs use stays resident from then on."""
        if self._original is None:
            return
        # Another library may have wrapped the door after us: it keeps calling our wrapper, which then does nothing.
        if getattr(torch.autograd.profiler, _DOOR) is self._wrapper:
            setattr(torch.autograd.profiler, _DOOR, self._original)
        self._original = None
        self._library.close_guard()

    def _step_aside(self) -> None:
        if self._original is None:
            return
        self._tell("off: torch's profiler uses CUPTI")
        _log.warning(
            "launches are not looked at any more: torch's profiler uses CUPTI. docs/limits.md says what that means."
        )
        self.close()
