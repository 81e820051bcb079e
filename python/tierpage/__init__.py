"""tierpage gives PyTorch one memory made of three tiers: VRAM, locked RAM and NVMe.

    import tierpage
    tierpage.enable(nvme_path="/data/scratch")

From then on tensors of at least 1 MiB live in the three tiers and move by themselves; results are the same bits as
without it. ``tierpage.disable()`` ends it. Settings: docs/tuning.md; what needs ``tierpage.pin``: docs/limits.md.
"""

from __future__ import annotations

import logging as _logging
import os as _os
import sys as _sys
from typing import TYPE_CHECKING as _TYPE_CHECKING

__version__ = "0.1.0"

from tierpage import native as _native
from tierpage.api import (
    Pager,
    config,
    disable,
    enable,
    evict,
    is_enabled,
    paged,
    pause,
    pin,
    prefetch,
    resume,
    set_budget,
    step,
)
from tierpage.errors import (
    CheckpointError,
    ConfigError,
    CorruptPageError,
    InternalError,
    OutOfMemoryError,
    PagerDeadError,
    StorageError,
    StorageFullError,
    TierpageError,
    TierpageWarning,
)
from tierpage.memory import (
    Placement,
    memory_stats,
    memory_summary,
    reset_accumulated_memory_stats,
    reset_peak_memory_stats,
    where,
)
from tierpage.settings import Config
from tierpage.trace import export_trace
from tierpage.viewer import dump_snapshot, memory_snapshot

__all__ = [
    "CheckpointError",
    "Config",
    "ConfigError",
    "CorruptPageError",
    "InternalError",
    "OutOfMemoryError",
    "Pager",
    "PagerDeadError",
    "Placement",
    "StorageError",
    "StorageFullError",
    "TierpageError",
    "TierpageWarning",
    "__version__",
    "config",
    "disable",
    "dump_snapshot",
    "enable",
    "evict",
    "export_trace",
    "is_enabled",
    "load",
    "memory_snapshot",
    "memory_stats",
    "memory_summary",
    "paged",
    "pause",
    "pin",
    "prefetch",
    "reset_accumulated_memory_stats",
    "reset_peak_memory_stats",
    "resume",
    "save",
    "set_budget",
    "step",
    "where",
]

if _TYPE_CHECKING:
    from tierpage._checkpoint.loading import load
    from tierpage._checkpoint.saving import save


def __getattr__(name: str) -> object:
    """Imports what few programs use when it is used."""
    if name == "load":
        from tierpage._checkpoint.loading import load as found
    elif name == "save":
        from tierpage._checkpoint.saving import save as found  # type: ignore[assignment]
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


_logging.getLogger("tierpage").addHandler(_logging.NullHandler())


def _explains_itself() -> bool:
    """True for `tierpage doctor` and the like, which must run, and say what is wrong, where nothing matches."""
    if _os.environ.get("TIERPAGE_SKIP_NATIVE_CHECK") == "1":
        return True
    program = _os.path.basename(_sys.argv[0]) if getattr(_sys, "argv", None) else ""
    return program == "tierpage" or (program == "-m" and "tierpage" in _sys.orig_argv)


if not _explains_itself():
    _native.check()
