"""``tierpage.save``: streams a model that may be larger than RAM to safetensors files.

What RAM holds is copied from there, and what is still a checkpoint's is read from that file by the threads that write, so
that the disk reads and writes at once; both leave everything in its place.
The rest is on the device, or on the disk and passes through the device, by the same operators as anything else that reads it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tierpage import native, touching
from tierpage._checkpoint.files import DTYPES, HEADER_BYTES_MAX, SUFFIX
from tierpage._checkpoint.publishing import publish_file, publish_shards, usual_names
from tierpage._checkpoint.writer import FileWriter
from tierpage.errors import CheckpointError
from tierpage.progress import progress
from tierpage.session import Session, current_or_none
from tierpage.sizes import parse_size

__all__ = ["save"]

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ALIGNMENT = 4096  # the content begins there: direct reads of the file need no shifting where tensors are whole pages
_PIECE_BYTES = 4 * 1024**2  # of a tensor that is not contiguous


@dataclass(frozen=True)
class _Shard:
    path: Path
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str]


def save(
    model: torch.nn.Module | Mapping[str, torch.Tensor],
    path: str | os.PathLike[str],
    *,
    max_shard_bytes: int | str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> list[Path]:
    """Writes a module's state dict, or any mapping from names to tensors, in the safetensors format.

    Memory beside the tensors' own: about 40 MiB, whatever the size. The page cache is left alone. The checkpoint appears
    under its name when all of its bytes are on the disk, in place of what had that name; a failure leaves everything as
    it was, however many files it has. A model may be saved over the very file that it was loaded from. Works with
    tierpage off, too.

    Tensors that are one and the same memory (tied weights) are written once, under the first name in alphabetical
    order, and the metadata tells ``{other name: written name}``, as ``safetensors.torch.save_model`` does.

    Args:
        model: the module or mapping. Do not change it meanwhile.
        path: the file to write, or an existing folder, which then gets ``model.safetensors``.
        max_shard_bytes: bytes or text ("5GB"). Above it, the content is divided over files
            ``<stem>-00001-of-0000N.safetensors`` with a ``<stem>.safetensors.index.json``. Where such a file is there,
            a new word stands behind the stem, and the index names the files. None: one file.
        metadata: texts for the file's header.

    Returns:
        The files written, the index last where there is one.

    Raises:
        StorageFullError, StorageError: the disk refused.
        CheckpointError: something that the format cannot hold.
        TypeError: not a module or a mapping.
    """
    given = model.state_dict() if isinstance(model, torch.nn.Module) else model
    if not isinstance(given, Mapping):
        raise TypeError(f"save() takes a module or a mapping of tensors, not {type(model).__name__}")
    target = Path(path)
    if target.is_dir():
        target = target / f"model{SUFFIX}"
    tensors, notes = _distinct(_checked(given))
    texts = {**notes, **(metadata or {})}
    if not all(isinstance(key, str) and isinstance(value, str) for key, value in texts.items()):
        raise CheckpointError("metadata must map texts to texts.")
    limit = (
        None
        if max_shard_bytes is None
        else parse_size(max_shard_bytes, "max_shard_bytes", fraction_allowed=False).count
    )
    shards = _divided(tensors, target, limit, texts)
    with contextlib.ExitStack() as stack:
        if (session := current_or_none()) is not None:
            stack.callback(session.runtime.reading_ends)
        writers = []
        with torch.no_grad(), progress("saving", len(tensors)) as advance:
            for shard in shards:
                header, order = _header(shard.tensors, shard.metadata)
                total = len(header) + sum(_size(tensor) for tensor in shard.tensors.values())
                writer = stack.enter_context(FileWriter(shard.path, total))
                writers.append(writer)
                writer.write(header)
                for name in order:
                    _write_tensor(writer, shard.tensors[name])
                    advance(name)
                writer.finish()
        return _publish(target, shards, writers)


def _publish(target: Path, shards: list[_Shard], writers: list[FileWriter]) -> list[Path]:
    if len(shards) == 1:
        publish_file(target, writers[0])
        return [target]

    def index_of(paths: list[Path]) -> bytes:
        weight_map = {name: path.name for shard, path in zip(shards, paths, strict=True) for name in shard.tensors}
        total = sum(_size(tensor) for shard in shards for tensor in shard.tensors.values())
        index = {"metadata": {"total_size": total, **shards[0].metadata}, "weight_map": weight_map}
        return json.dumps(index, indent=2).encode()

    return publish_shards(target, writers, index_of)


def _checked(given: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    for name, tensor in given.items():
        why = ""
        if not isinstance(name, str) or name == "__metadata__":
            why = "that name is not possible"
        elif not isinstance(tensor, torch.Tensor):
            why = f"it is a {type(tensor).__name__}, not a tensor"
        elif tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
            why = f"the format has no {tensor.layout} tensors"
        elif tensor.dtype not in _NAMES:
            why = f"the format has no {tensor.dtype}"
        elif tensor.is_meta:
            why = "it is on the meta device and has no content"
        if why:
            raise CheckpointError(
                f"{name!r:.80} cannot be saved: {why}.\nRemedy: leave it out, or save a converted copy of it."
            )
    return {name: tensor.detach() for name, tensor in given.items()}


def _memory_of(tensor: torch.Tensor) -> tuple[Any, ...]:
    storage = touching.storage_of(tensor)
    whose: int = id(tensor) if storage is None or tensor.numel() == 0 else storage._cdata
    return (
        whose,
        tensor.storage_offset(),
        tensor.dtype,
        tuple(tensor.shape),
        tensor.stride(),
        tensor.is_conj(),
        tensor.is_neg(),
    )


def _distinct(tensors: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Each memory under one name, and ``{other name: kept name}``."""
    kept: dict[tuple[Any, ...], str] = {}
    for name in sorted(tensors):
        kept.setdefault(_memory_of(tensors[name]), name)
    notes = {name: kept[_memory_of(tensor)] for name, tensor in tensors.items()}
    return (
        {name: tensor for name, tensor in tensors.items() if notes[name] == name},
        {name: other for name, other in notes.items() if name != other},
    )


def _size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _divided(tensors: dict[str, torch.Tensor], target: Path, limit: int | None, texts: dict[str, str]) -> list[_Shard]:
    parts: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if limit is not None and parts[-1] and size + _size(tensor) > limit:
            parts.append({})
            size = 0
        parts[-1][name] = tensor
        size += _size(tensor)
    if len(parts) == 1:
        return [_Shard(target, parts[0], texts)]
    return [_Shard(path, part, texts) for path, part in zip(usual_names(target, len(parts)), parts, strict=True)]


def _header(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> tuple[bytes, list[str]]:
    """The header with its length, and the names in the order of their content: wide dtypes first, so all are aligned."""
    order = sorted(tensors, key=lambda name: -tensors[name].element_size())
    entries: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    end = 0
    for name in order:
        tensor = tensors[name]
        start, end = end, end + _size(tensor)
        entries[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    if len(text) > HEADER_BYTES_MAX:
        raise CheckpointError(
            f"{len(tensors)} tensors need a header of {len(text)} bytes, more than the format's {HEADER_BYTES_MAX}."
        )
    return len(text).to_bytes(8, "little") + text, order


def _write_tensor(writer: FileWriter, tensor: torch.Tensor) -> None:
    for part in _contiguous_parts(tensor):
        if part.numel() > 0:
            _write_bytes(writer, part.reshape(-1).view(torch.uint8))


def _write_bytes(writer: FileWriter, content: torch.Tensor) -> None:
    """From RAM where RAM has it, else from the checkpoint where that still is the content, else by operators."""
    session = current_or_none()
    address = session.address_of(content) if session is not None else 0
    if session is not None and address != 0:
        session.library.run_deferred(address)  # what RAM or the file holds may be what an optimizer has still to change
    base, total, at = int(content.storage_offset()), content.numel(), 0
    runs = _sourced_runs(session, address)
    while at < total:
        target = writer.buffer()[: total - at]
        count, page_end = 0, base + total
        if session is not None and address != 0:
            with native.translated():
                count, page_end = session.runtime.read_host(address, base + at, target)
        if count == 0:
            count = min(len(target), page_end - base - at)
            first, end, place = next((run for run in runs if run[1] > base + at), (base + total, base + total, 0))
            if session is not None and first <= base + at:
                count = min(count, end - base - at)
                del target
                writer.fill_later(count, functools.partial(_read_source, session, place + base + at - first))
                at += count
                continue
            count = min(count, first - base - at)
            torch.frombuffer(target, dtype=torch.uint8, count=count).copy_(content[at : at + count])
        del target
        writer.filled(count)
        at += count


def _read_source(session: Session, place: int, target: memoryview) -> None:
    with native.translated():
        session.runtime.read_source(place, target)


def _contiguous_parts(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The content in logical order, as contiguous tensors; what is made for that is small."""
    tensor = tensor.resolve_conj().resolve_neg()
    if tensor.is_contiguous():
        yield tensor
    elif _size(tensor) <= _PIECE_BYTES or tensor.dim() == 0:
        yield tensor.contiguous()
    elif _size(tensor[0]) <= _PIECE_BYTES // 2:
        rows = max(1, _PIECE_BYTES // _size(tensor[0]))
        for first in range(0, tensor.shape[0], rows):
            yield tensor[first : first + rows].contiguous()
    else:
        for row in tensor:
            yield from _contiguous_parts(row)


def _sourced_runs(session: Session | None, address: int) -> list[tuple[int, int, int]]:
    """(first byte of the storage, end, place) of what a file still holds, in order."""
    if session is None or address == 0:
        return []
    with native.translated():
        return [(first, first + count, place) for first, place, count in session.runtime.sourced_runs(address)]
