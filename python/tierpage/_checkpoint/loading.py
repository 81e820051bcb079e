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

from tierpage._checkpoint.files import CheckpointFile, StoredTensor, open_checkpoint
from tierpage._checkpoint.tensors import FileTensors
from tierpage.errors import ConfigError, TierpageWarning
from tierpage.progress import progress
from tierpage.session import Session, current

__all__ = ["load"]

_GROUP_BYTES = 8 * 1024**2  # small tensors that lie near each other are read together
_GROUP_GAP_BYTES = 64 * 1024
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
        TierpageError: tierpage is off.
        CheckpointError: a file is malformed, or was written to meanwhile.
        StorageError: a file was written to meanwhile.
        OSError: a file cannot be opened.
        RuntimeError: from torch, names or shapes do not match.
        ConfigError: ``dtype`` is neither, or host_budget leaves no room for the staging buffers.
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
                for name, tensor in _tensors_of(session, file, wanted):
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


def _tensors_of(session: Session, file: CheckpointFile, wanted: _Wanted) -> Iterator[tuple[str, torch.Tensor]]:
    with FileTensors(session, file) as made:
        for stored in file.tensors.values():
            if made.is_sourced(stored):
                yield stored.name, made.whole(stored, wanted.dtype(stored))
    for group in _groups([stored for stored in file.tensors.values() if not made.is_sourced(stored)]):
        yield from made.read_now(group, wanted.dtype)


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
