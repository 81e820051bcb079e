"""The exceptions and the warning category of tierpage.

Every message has three parts: what happened with numbers, the likely cause, the remedy. The first part comes from the
place that failed; cause and remedy come from the one table below (``REMEDIES``), which docs/troubleshooting.md repeats.
"""

from __future__ import annotations

import errno as _errno
import re
from typing import Final

import torch

__all__ = [
    "CheckpointError",
    "ConfigError",
    "CorruptPageError",
    "InternalError",
    "OutOfMemoryError",
    "PagerDeadError",
    "StorageError",
    "StorageFullError",
    "TierpageError",
    "TierpageWarning",
]

# accelerate's find_executable_batch_size takes an error for "out of memory" only if it is a RuntimeError with exactly
# one argument that contains this text, the leading blank and the full stop included.
OUT_OF_MEMORY_PHRASE: Final = " out of memory."

# Lightning's batch size finder demands "CUDA" as well, on whatever device.
LIGHTNING_WORD: Final = "CUDA"
_FOR_FINDERS: Final = 'Tools that look for a batch size know it by torch\'s words "CUDA out of memory."'

# Codes of csrc/core/model/status.h.
OK, WAIT, OUT_OF_MEMORY, STORAGE_ERROR, STORAGE_FULL, CORRUPT_PAGE = 0, 1, 2, 3, 4, 5
INVALID_ARGUMENT, UNAVAILABLE, INTERRUPTED, PAGER_DEAD, INTERNAL = 6, 7, 8, 9, 10

# code -> (likely cause, remedy)
REMEDIES: Final[dict[int, tuple[str, str]]] = {
    OUT_OF_MEMORY: (
        "the tensors that one operator needs at the same time, and those held by pin, exceed the device budget",
        "raise device_budget, make the batch or the sequence shorter, or release pins",
    ),
    STORAGE_ERROR: (
        "the disk or the file system under nvme_path refused a read or a write",
        "see the kernel log for the disk, run `tierpage doctor PATH`, or choose another nvme_path",
    ),
    STORAGE_FULL: (
        "the NVMe tier has no room left: its budget, a quota or the file system is used up",
        "raise nvme_budget, free space under nvme_path, or raise host_budget",
    ),
    CORRUPT_PAGE: (
        "the disk returned other bytes than were written; the content of this tensor is lost",
        "go back to a checkpoint, then check the disk (smartctl -a) and choose another nvme_path",
    ),
    INVALID_ARGUMENT: ("a value cannot work on this machine", "change the value; docs/tuning.md lists every setting"),
    UNAVAILABLE: ("this machine lacks something that was asked for", "run `tierpage doctor`, it names what is missing"),
    PAGER_DEAD: (
        "an earlier failure made the pager's state untrustworthy; that first failure is named above",
        "restart the process from the last checkpoint; an illegal address on the GPU points to docs/limits.md first",
    ),
    INTERNAL: (
        "a defect in tierpage, not in your program",
        "report it with the output of `tierpage doctor --json`; restart the process from the last checkpoint",
    ),
}


class TierpageWarning(UserWarning):
    """Category of every warning that tierpage gives; filter it with :mod:`warnings`."""


class TierpageError(Exception):
    """Base of every error that tierpage raises."""


class OutOfMemoryError(TierpageError, torch.OutOfMemoryError, MemoryError):
    """One operator's tensors, or what is pinned, do not fit into the device budget.

    It is a ``torch.OutOfMemoryError`` with one text argument that holds the phrase " out of memory." and the word "CUDA",
    so retry helpers such as accelerate's ``find_executable_batch_size`` and Lightning's ``Tuner`` recognise it.
    """

    def __init__(self, message: str = "") -> None:
        text = message if OUT_OF_MEMORY_PHRASE in message else f"tierpage is out of memory. {message}".rstrip()
        super().__init__(text if LIGHTNING_WORD in text else f"{text}\n{_FOR_FINDERS}")


class StorageError(TierpageError, OSError):
    """The NVMe tier failed. ``errno`` holds the system's error number, ``None`` where there is none."""

    _default_errno: int | None = None

    def __init__(self, message: str = "", errno: int | None = None) -> None:
        super().__init__(message)
        number = errno or _errno_in(message) or self._default_errno
        if number:
            self.errno = number

    def __reduce__(self) -> tuple[type, tuple[str, int | None]]:
        return type(self), (str(self), self.errno)


class StorageFullError(StorageError):
    """The NVMe tier has no room left (``errno`` is ENOSPC unless the system said otherwise)."""

    _default_errno = _errno.ENOSPC


class CorruptPageError(TierpageError):
    """A page read back from the NVMe tier is not what was written. Raised in the operator that owns the page."""


class ConfigError(TierpageError, ValueError):
    """A setting cannot work; the message names the value and the remedy. Nothing has been changed."""


class CheckpointError(TierpageError, ValueError):
    """A checkpoint file is not what its format demands, or a tensor cannot be written to one. Nothing was loaded."""


class PagerDeadError(TierpageError):
    """The pager has stopped for good after an earlier failure, which the message names."""


class InternalError(TierpageError):
    """An invariant of tierpage itself is broken: a defect worth a report."""


_CLASSES: Final[dict[int, type[BaseException]]] = {
    OUT_OF_MEMORY: OutOfMemoryError,
    STORAGE_ERROR: StorageError,
    STORAGE_FULL: StorageFullError,
    CORRUPT_PAGE: CorruptPageError,
    INVALID_ARGUMENT: ConfigError,
    UNAVAILABLE: ConfigError,
    INTERRUPTED: KeyboardInterrupt,
    PAGER_DEAD: PagerDeadError,
    INTERNAL: InternalError,
}


def class_for(code: int) -> type[BaseException]:
    """The exception class of a status code; ``InternalError`` for a code without one."""
    return _CLASSES.get(code, InternalError)


def class_table() -> list[type[BaseException]]:
    """Exception classes by code, for ``tierpage_torch_attach``: entry ``i`` belongs to code ``i``."""
    return [class_for(code) for code in range(INTERNAL + 1)]


def explain(code: int, message: str) -> str:
    """``message`` with the likely cause and the remedy of ``code`` below it, each once."""
    cause_and_remedy = REMEDIES.get(code)
    if cause_and_remedy is None or "Remedy:" in message:
        return message
    cause, remedy = cause_and_remedy
    return f"{message}\nLikely cause: {cause}.\nRemedy: {remedy}."


def make_error(code: int, message: str, system_error: int = 0) -> BaseException:
    """Builds the exception for a failure of the native part. ``system_error``: errno or 0."""
    kind = class_for(code)
    text = explain(code, message)
    if issubclass(kind, StorageError):
        return kind(text, system_error or None)
    return kind(text)


def _errno_in(message: str) -> int | None:
    """The number in "... errno 28 ..." (messages that come through the operator path carry it as text)."""
    found = re.search(r"\berrno[ =](\d+)", message)
    return int(found.group(1)) if found else None
