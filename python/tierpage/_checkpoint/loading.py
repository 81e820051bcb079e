"""``tierpage.load``: a checkpoint's file becomes the memory that a model's weights come from.

A tensor of at least ``min_paged_bytes`` gets addresses and a place in the file, and nothing else: its pages are read when
an operator uses them, and dropped when their room is wanted, for the file still holds them. The first write to a page ends
that, for that page. Smaller tensors, and those whose dtype changes, are read at once.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from tierpage import native
from tierpage._checkpoint.files import CheckpointFile, StoredTensor, open_checkpoint
from tierpage.errors import ConfigError, TierpageWarning
from tierpage.progress import progress
from tierpage.session import Session, current

__all__ = ["load"]

_GROUP_BYTES = 8 * 1024**2  # small tensors that lie near each other are read together
_GROUP_GAP_BYTES = 64 * 1024
_PIECE_BYTES = 16 * 1024**2  # of a tensor that is converted
_NAMES_SHOWN = 5
_NOTHING = torch.empty(0)


def load(
    model: torch.nn.Module,
    path: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    strict: bool = True,
    *,
    dtype: torch.dtype | str | None = None,
) -> Any:
    """Gives ``model`` the weights of a safetensors checkpoint, without reading them before they are used.

    What ``model.load_state_dict(weights, strict=strict, assign=True)`` does: parameters and buffers are replaced by
    new ones on the paged device, so make optimizers afterwards. The model may be on the "meta" device. Parameters that
    were one object before (tied weights) are one object afterwards, and one of their names in the file is enough; if
    the file has several, the last in the order of the model's parameters counts.

    The files must stay as they are while the model is in use. Renaming a new file over one, or deleting it, is fine;
    writing into it is detected: the next operator that needs an unread page raises StorageError.

    Args:
        model: any module.
        path: a ``*.safetensors`` file, a ``*.safetensors.index.json``, a folder with either (a Hugging Face snapshot), or
            several of these.
        strict: as in ``load_state_dict``: missing and unexpected names raise RuntimeError.
        dtype: None keeps the file's dtypes. A floating-point dtype converts every floating-point tensor, "model" every
            tensor to the dtype that the model has. What is converted is read now and becomes ordinary paged memory.

    Returns:
        ``missing_keys`` and ``unexpected_keys``, as ``load_state_dict``.

    Raises:
        TierpageError while tierpage is off. CheckpointError: a file is malformed. CheckpointError or StorageError: it was
        written to meanwhile. OSError: a file cannot be opened.
        RuntimeError, from torch: names or shapes do not match. ConfigError: ``dtype`` is neither, or host_budget leaves
        no room for the staging buffers.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"load() takes a module, not {type(model).__name__}")
    wanted = _Wanted(model, dtype)
    session = current()
    files = open_checkpoint(path)
    try:
        tensors: dict[str, torch.Tensor] = {}
        count = sum(len(file.tensors) for file in files)
        with progress("loading", count) as advance:
            for file in files:
                tensors.update(dict.fromkeys(file.tensors, _NOTHING))  # messages name tensors in the file's order
                for name, tensor in _Reader(session, file, wanted).tensors():
                    tensors[name] = tensor
                    advance(name)
    finally:
        for file in files:
            file.close()
    wanted.tie(tensors)
    result = model.load_state_dict(tensors, strict=strict, assign=True)
    _warn_of_meta(model)
    return result


class _Wanted:
    """What the model has under each name: dtypes, and which names are one object."""

    def __init__(self, model: torch.nn.Module, dtype: torch.dtype | str | None) -> None:
        if not (dtype is None or dtype == "model" or (isinstance(dtype, torch.dtype) and dtype.is_floating_point)):
            raise ConfigError(f"dtype={dtype!r} is none: give None, 'model' or a floating-point torch.dtype.")
        self._dtype = dtype
        self._model: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
        self._model.update(model.named_buffers(remove_duplicate=False))

    def dtype(self, stored: StoredTensor) -> torch.dtype:
        if isinstance(self._dtype, torch.dtype):
            return self._dtype if stored.dtype.is_floating_point else stored.dtype
        if self._dtype == "model" and stored.name in self._model:
            return self._model[stored.name].dtype
        return stored.dtype

    def tie(self, tensors: dict[str, torch.Tensor]) -> None:
        """Puts the same parameter under every name of what was one parameter; ``load_state_dict`` keeps it as it is."""
        names_of: dict[int, list[str]] = {}
        for name, known in self._model.items():
            names_of.setdefault(id(known), []).append(name)
        for names in names_of.values():
            there = [name for name in names if name in tensors]
            if len(names) == 1 or not there:
                continue
            tensor, known = tensors[there[-1]], self._model[names[0]]
            if isinstance(known, torch.nn.Parameter):
                tensor = torch.nn.Parameter(tensor, requires_grad=known.requires_grad)
            tensors.update(dict.fromkeys(names, tensor))


class _Reader:
    """Makes the tensors of one file."""

    def __init__(self, session: Session, file: CheckpointFile, wanted: _Wanted) -> None:
        config = session.config
        self._runtime = session.runtime
        self._library = session.library
        self._file = file
        self._wanted = wanted
        self._sourced_bytes_min = max(1, config.min_paged_bytes)
        self._device = (
            torch.device("cpu") if config.device == "cpu" else torch.device(config.device, config.device_index)
        )
        self._place = 0

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        stored = list(self._file.tensors.values())
        large = [tensor for tensor in stored if tensor.bytes >= self._sourced_bytes_min]
        small = [tensor for tensor in stored if tensor.bytes < self._sourced_bytes_min]
        if large:
            with native.translated():
                file = self._file
                self._place = self._runtime.add_source(file.descriptor, str(file.path), file.bytes, file.modified_ns)
        try:
            for tensor in large:
                same = self._wanted.dtype(tensor) == tensor.dtype
                yield tensor.name, self._sourced(tensor) if same else self._converted(tensor)
        finally:
            if large:
                self._runtime.let_source_go(self._place)
        for group in _groups(small):
            yield from self._read_now(group)

    def _sourced(self, stored: StoredTensor) -> torch.Tensor:
        tensor = torch.empty(0, dtype=stored.dtype, device=self._device)
        self._library.fill_storage(tensor.untyped_storage(), self._place + stored.offset, stored.bytes)
        # A pure view uses nothing, where set_ would; `data` is no view to autograd.
        return tensor.as_strided(stored.shape, _strides(stored.shape)).data

    def _converted(self, stored: StoredTensor) -> torch.Tensor:
        target = torch.empty(stored.shape, dtype=self._wanted.dtype(stored), device=self._device)
        flat = target.view(-1)
        buffer = bytearray(min(_PIECE_BYTES, stored.bytes))
        for start in range(0, stored.bytes, _PIECE_BYTES):
            size = min(_PIECE_BYTES, stored.bytes - start)
            with native.translated():
                self._runtime.read_source(self._place + stored.offset + start, memoryview(buffer)[:size])
            piece = torch.frombuffer(buffer, dtype=stored.dtype, count=size // stored.dtype.itemsize)
            first = start // stored.dtype.itemsize
            flat[first : first + piece.numel()].copy_(piece)
        return target

    def _read_now(self, group: list[StoredTensor]) -> Iterator[tuple[str, torch.Tensor]]:
        start = group[0].offset
        buffer = bytearray(group[-1].offset + group[-1].bytes - start)
        self._file.read(start, memoryview(buffer))
        for stored in group:
            target = torch.empty(stored.shape, dtype=self._wanted.dtype(stored), device=self._device)
            if stored.bytes > 0:
                # Into memory of its own first: a tensor begins anywhere in the buffer, and kernels want it aligned.
                first = stored.offset - start
                content = bytearray(buffer[first : first + stored.bytes])
                target.copy_(torch.frombuffer(content, dtype=stored.dtype).view(stored.shape))
            yield stored.name, target


def _groups(tensors: list[StoredTensor]) -> Iterator[list[StoredTensor]]:
    group: list[StoredTensor] = []
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.bytes)):
        if group:
            end = group[-1].offset + group[-1].bytes
            if tensor.offset - end > _GROUP_GAP_BYTES or tensor.offset + tensor.bytes - group[0].offset > _GROUP_BYTES:
                yield group
                group = []
        group.append(tensor)
    if group:
        yield group


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides = [1]
    for size in reversed(shape[1:]):
        strides.append(strides[-1] * max(size, 1))
    return tuple(reversed(strides))[: len(shape)] if shape else ()


def _warn_of_meta(model: torch.nn.Module) -> None:
    left = [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_meta]
    if left:
        names = ", ".join(left[:_NAMES_SHOWN]) + (", ..." if len(left) > _NAMES_SHOWN else "")
        warnings.warn(
            f"{len(left)} tensors of the model are still on the meta device, because the checkpoint does not hold them: "
            f"{names}. Make them yourself, for example with the code that made them in the module's __init__.",
            TierpageWarning,
            stacklevel=3,
        )
