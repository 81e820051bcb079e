"""Checkpoint files of the safetensors format: which files a path means, and what stands where in them.

Nothing of a file is believed before it is checked: sizes against the file's, offsets against each other, names of an
index against leaving its folder. A header costs memory in proportion to its size, which is bounded.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import torch

from tierpage.errors import CheckpointError

__all__ = ["DTYPES", "CheckpointFile", "StoredTensor", "open_checkpoint"]

HEADER_BYTES_MAX = 100_000_000  # of the format
HEADER_VALUES_MAX = 4_000_000  # what JSON values cost in memory is bounded too; four hundred thousand tensors
INDEX_SUFFIX = ".safetensors.index.json"
SUFFIX = ".safetensors"
_SHARD = re.compile(r"-\d{5,}-of-\d{5,}\.safetensors$")

# Names of the format. Those that this torch lacks are left out.
DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, attribute)
    for name, attribute in {
        "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "F16": "float16",
        "BF16": "bfloat16", "U32": "uint32", "I32": "int32", "F32": "float32", "U64": "uint64", "I64": "int64",
        "F64": "float64", "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
        "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz", "F8_E8M0": "float8_e8m0fnu",
    }.items()
    if hasattr(torch, attribute)
}  # fmt: skip


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file: ``offset`` and ``bytes`` are those of its content in the file."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    bytes: int


class CheckpointFile:
    """An open file of the format with its checked header. ``descriptor`` is closed by :meth:`close`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # O_NONBLOCK: opening a pipe would wait for somebody to write into it.
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            info = os.fstat(self.descriptor)
            if not stat.S_ISREG(info.st_mode):
                raise CheckpointError(f"'{path}' is not a regular file.")
            self.bytes = info.st_size
            self.modified_ns = info.st_mtime_ns
            os.posix_fadvise(self.descriptor, 0, 0, os.POSIX_FADV_RANDOM)
            self.tensors = {tensor.name: tensor for tensor in self._read_header()}
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Closes the descriptor; may be called again."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def read(self, offset: int, target: memoryview) -> None:
        """Fills ``target`` (bytes) from the file. Raises CheckpointError where the file ends before, or has changed since
        it was opened: what its header said need not be true any more."""
        done = 0
        while done < len(target):
            count = os.preadv(self.descriptor, [target[done:]], offset + done)
            if count == 0:
                self.refuse(f"it ends after {offset + done} bytes")
            done += count
        info = os.fstat(self.descriptor)
        if (info.st_size, info.st_mtime_ns) != (self.bytes, self.modified_ns):
            self.refuse(f"it was written to while it was read, and has {info.st_size} bytes instead of {self.bytes}")

    def refuse(self, why: str) -> NoReturn:
        """Raises CheckpointError that names the file."""
        raise CheckpointError(
            f"checkpoint file '{self.path}' cannot be loaded: {why}.\n"
            "Likely cause: a download or a copy that did not finish, or a file that is not of the safetensors format.\n"
            "Remedy: fetch the file again, or compare its size and checksum with the original's."
        )

    def _read_header(self) -> list[StoredTensor]:
        if self.bytes < 8:
            self.refuse(f"it has {self.bytes} bytes, less than the 8 that tell the header's size")
        length_bytes = bytearray(8)
        self.read(0, memoryview(length_bytes))
        length = int.from_bytes(length_bytes, "little")
        if length > HEADER_BYTES_MAX:
            self.refuse(f"its header would have {length} bytes, and the format allows {HEADER_BYTES_MAX}")
        if length > self.bytes - 8:
            self.refuse(f"its header would have {length} bytes, but the file has {self.bytes}")
        text = bytearray(length)
        self.read(8, memoryview(text))
        if not text.startswith(b"{"):
            self.refuse("its header does not begin with '{'")
        try:
            header = load_json(text)
            return self._check(header, 8 + length)
        except ValueError as error:
            if isinstance(error, CheckpointError):
                raise
            self.refuse(str(error))

    def _check(self, header: Any, data_start: int) -> list[StoredTensor]:
        if not isinstance(header, dict):
            raise ValueError("its header is not an object")
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("the header's __metadata__ holds something else than texts")
        data_bytes = self.bytes - data_start
        tensors = [_check_tensor(name, entry, data_start, data_bytes) for name, entry in header.items()]
        # The content is covered without holes, so nothing can hide in it.
        in_order = sorted(tensors, key=lambda tensor: (tensor.offset, tensor.bytes))
        end = data_start
        for tensor in in_order:
            if tensor.offset != end:
                what = "overlaps the one before it" if tensor.offset < end else "begins after a hole"
                raise ValueError(f"tensor {_shown(tensor.name)} at offset {tensor.offset - data_start} {what}")
            end += tensor.bytes
        if end != self.bytes:
            raise ValueError(f"its tensors end at {end} bytes, and the file at {self.bytes}")
        return tensors


def _shown(name: str) -> str:
    return repr(name if len(name) <= 80 else name[:77] + "...")


def _check_tensor(name: str, entry: Any, data_start: int, data_bytes: int) -> StoredTensor:
    shown = _shown(name)
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the name {shown} is not text") from None
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= set(entry):
        raise ValueError(f"tensor {shown} has something else than dtype, shape and data_offsets")
    dtype = DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise ValueError(
            f"tensor {shown} has dtype {entry['dtype']!r:.40}, which torch {torch.__version__} cannot hold"
        )
    shape, offsets = entry["shape"], entry["data_offsets"]
    for what, numbers in (("shape", shape), ("data_offsets", offsets)):
        # bool is an int to Python, not to the format.
        if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < 2**63 for n in numbers):
            raise ValueError(f"tensor {shown} has {what} {numbers!r:.60}, not a list of numbers from 0 on")
    if len(offsets) != 2 or offsets[0] > offsets[1] or offsets[1] > data_bytes:
        raise ValueError(f"tensor {shown} lies at {offsets!r:.60} of {data_bytes} bytes")
    if len(shape) > 64:
        raise ValueError(f"tensor {shown} has {len(shape)} dimensions")
    size = offsets[1] - offsets[0]
    # Python's integers do not overflow; torch's would, where one factor is 0 and others are huge.
    if prod(shape) * dtype.itemsize != size or prod(max(n, 1) for n in shape) * dtype.itemsize >= 2**63:
        raise ValueError(f"tensor {shown} of shape {shape!r:.60} and dtype {dtype} does not have {size} bytes")
    return StoredTensor(name, dtype, tuple(shape), data_start + offsets[0], size)


def load_json(text: bytes | bytearray) -> Any:
    """JSON without duplicate names, huge numbers and endless nesting. Raises ValueError."""
    values = sum(text.count(mark) for mark in (b",", b":", b"[", b"{"))
    if values > HEADER_VALUES_MAX:
        raise ValueError(f"it holds {values} values, more than the {HEADER_VALUES_MAX} that are read")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            seen: set[str] = set()
            twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            raise ValueError(f"the name {_shown(twice)} stands there twice")
        return found

    def no_constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is no number of JSON")

    try:
        return json.loads(text.decode(), object_pairs_hook=unique, parse_constant=no_constant)
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def open_checkpoint(path: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[CheckpointFile]:
    """Opens what ``path`` means: a file, an index, a folder with either, or several of these.

    Every tensor name stands in one file. Raises CheckpointError and, for files that are not there, OSError.
    """
    given = [path] if isinstance(path, (str, os.PathLike)) else list(path)
    opened: list[CheckpointFile] = []
    try:
        owner: dict[str, CheckpointFile] = {}
        for one in given:
            for file in _open_one(Path(one), opened):
                for name in file.tensors:
                    if name in owner:
                        file.refuse(f"tensor {_shown(name)} stands in '{owner[name].path}' too")
                    owner[name] = file
        if not opened:
            raise CheckpointError("no checkpoint file was given.")
        return opened
    except BaseException:
        for file in opened:
            file.close()
        raise


def _open_one(path: Path, opened: list[CheckpointFile]) -> list[CheckpointFile]:
    if path.is_dir():
        return [file for found in _files_of(path) for file in _open_one(found, opened)]
    if path.name.endswith(".index.json"):
        return _open_index(path, opened)
    file = CheckpointFile(path)
    opened.append(file)
    return [file]


def _files_of(folder: Path) -> list[Path]:
    """The usual name, else the one index, else every file that is no shard."""
    if (folder / f"model{SUFFIX}").exists():
        return [folder / f"model{SUFFIX}"]
    indices = sorted(folder.glob(f"*{INDEX_SUFFIX}"))
    if len(indices) == 1 or any(index.name == f"model{INDEX_SUFFIX}" for index in indices):
        return [indices[0] if len(indices) == 1 else folder / f"model{INDEX_SUFFIX}"]
    files = sorted(folder.glob(f"*{SUFFIX}"))
    shards = [file.name for file in files if _SHARD.search(file.name)]
    if indices or shards or not files:
        found = ", ".join(file.name for file in [*indices, *files][:4]) or "none"
        raise CheckpointError(
            f"folder '{folder}' holds no model{SUFFIX} and no index of shards that could be meant (found: {found}).\n"
            "Remedy: give the file or the index itself, or fetch what is missing."
        )
    return files


def _open_index(path: Path, opened: list[CheckpointFile]) -> list[CheckpointFile]:
    def refuse(why: str) -> NoReturn:
        raise CheckpointError(
            f"checkpoint index '{path}' cannot be loaded: {why}.\nRemedy: fetch the checkpoint again."
        )

    with open(path, "rb") as stream:
        text = stream.read(HEADER_BYTES_MAX + 1)
    try:
        if len(text) > HEADER_BYTES_MAX:
            raise ValueError(f"it has more than {HEADER_BYTES_MAX} bytes")
        index = load_json(text)
    except ValueError as error:
        refuse(str(error))
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(place, str) for place in places.values()):
        refuse("it has no weight_map from names of tensors to names of files")
    files: dict[str, CheckpointFile] = {}
    for place in dict.fromkeys(places.values()):
        if not place or place in (".", "..") or "/" in place or "\0" in place:
            refuse(f"it names {place!r:.80} as a file, which is not a name in its folder")
        files[place] = CheckpointFile(path.parent / place)
        opened.append(files[place])
    for name, place in places.items():
        if name not in files[place].tensors:
            files[place].refuse(f"the index '{path.name}' promises tensor {_shown(name)} in it")
    return list(files.values())
