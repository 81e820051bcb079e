"""Stands in for ``safetensors.safe_open`` while transformers loads: tensors that are asked for whole are tierpage's.

The library opens a file, takes a slice object by name, and reads it as ``slice[...]``. All else (names, shapes, parts
of a tensor) is answered by the library's own objects, so a tensor is the same bits in either way.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import Any

import torch

from tierpage._checkpoint.files import CheckpointFile, StoredTensor
from tierpage._checkpoint.tensors import FileTensors
from tierpage.errors import CheckpointError
from tierpage.session import Session

__all__ = ["Load"]


class Load:
    """One load of weights: its files, open until the block ends. Any thread may ask for tensors.

    ``tensors`` counts those that were made here; ``refusals`` says why a file is left to the library.
    """

    def __init__(self, session: Session) -> None:
        self.tensors = 0
        self.refusals: dict[str, str] = {}
        self._session = session
        self._files: dict[str, tuple[CheckpointFile, FileTensors]] = {}
        self._open = contextlib.ExitStack()
        self._ended = False
        self._lock = threading.Lock()  # the library's threads may ask while the load ends

    def __enter__(self) -> Load:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        with self._lock:
            self._ended = True
            self._open.close()

    def around(self, opened: Any, path: str | os.PathLike[str]) -> Any:
        """``opened`` itself, the library's object for the file, or what stands in for it."""
        name = os.fspath(path)
        with self._lock:
            try:
                if name not in self._files and name not in self.refusals and not self._ended:
                    file = self._open.enter_context(contextlib.closing(CheckpointFile(Path(name))))
                    self._files[name] = file, self._open.enter_context(FileTensors(self._session, file))
            except CheckpointError as error:
                self.refusals[name] = str(error).splitlines()[0]
            return _File(self, name, opened) if name in self._files else opened

    def stored(self, path: str, name: str) -> StoredTensor | None:
        """Where a tensor stands in its file; ``None`` where the file lacks it."""
        return self._files[path][0].tensors.get(name)

    def whole(self, path: str, stored: StoredTensor) -> torch.Tensor | None:
        """The tensor on the paged device; ``None`` once the load has ended."""
        with self._lock:
            if self._ended:
                return None
            made = self._files[path][1]
            if made.is_sourced(stored):
                tensor = made.whole(stored, stored.dtype)
            else:
                ((_, tensor),) = made.read_now([stored], lambda one: one.dtype)
            self.tensors += 1
            return tensor


class _File:
    """Stands in for what ``safe_open`` returns."""

    def __init__(self, load: Load, path: str, opened: Any) -> None:
        self._load = load
        self._path = path
        self._opened = opened

    def __enter__(self) -> _File:
        self._opened.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._opened.__exit__(*error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._opened, name)

    def get_slice(self, name: str) -> Any:
        """What stands in for the slice object of one tensor."""
        part = self._opened.get_slice(name)
        stored = self._load.stored(self._path, name)
        return part if stored is None else _Slice(self._load, self._path, stored, part)

    def get_tensor(self, name: str) -> Any:
        """The whole tensor."""
        stored = self._load.stored(self._path, name)
        tensor = None if stored is None else self._load.whole(self._path, stored)
        return self._opened.get_tensor(name) if tensor is None else tensor


class _Slice:
    """Stands in for what ``get_slice`` returns."""

    def __init__(self, load: Load, path: str, stored: StoredTensor, part: Any) -> None:
        self._load = load
        self._path = path
        self._stored = stored
        self._part = part

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)

    def __getitem__(self, index: Any) -> Any:
        tensor = self._load.whole(self._path, self._stored) if index is Ellipsis else None
        return self._part[index] if tensor is None else tensor
