"""safetensors' files of more tensors than fit, on the host device.

The library takes the pointers of all tensors first and hands them to the kernel later. A system call on memory that is
not mapped fails with EFAULT ("Bad address"), and nobody is asked to bring it. Where a pointer leads to paged memory the
file is therefore written here: the same bytes, from copies of a piece at a time, whose reading brings the pages.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["around_serialize_file"]

_PIECE_BYTES = 4 * 1024**2
_ALIGNMENT = 8
# The library's order of content, so that the widest stand first and all are aligned.
_WIDEST_FIRST = (
    "U64", "I64", "F64", "C64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16",
    "F8_E8M0", "F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2", "F8_E5M2FNUZ", "I8", "U8", "F6_E3M2", "F6_E2M3", "F4", "BOOL",
)  # fmt: skip
_RANKS = {dtype: rank for rank, dtype in enumerate(_WIDEST_FIRST)}


def around_serialize_file(is_paged: Callable[[int], bool]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """What makes of the library's ``serialize_file`` one that may be given pointers to paged memory."""

    def around(original: Callable[..., Any]) -> Callable[..., Any]:
        def serialize_file(tensor_dict: Any, filename: Any, metadata: Any = None) -> Any:
            # Before 0.7 the library was given copies.
            pointers = [getattr(spec, "data_ptr", 0) for spec in tensor_dict.values()]
            if any(map(is_paged, pointers)) and all(spec.dtype in _RANKS for spec in tensor_dict.values()):
                return _write(tensor_dict, Path(os.fspath(filename)), metadata)
            return original(tensor_dict, filename, metadata=metadata)

        return serialize_file

    return around


def _write(specs: Mapping[str, Any], path: Path, metadata: Mapping[str, str] | None) -> None:
    order = sorted(specs, key=lambda name: (_RANKS[specs[name].dtype], name.encode()))
    entries: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name in order:
        begin, end = end, end + specs[name].data_len
        entries[name] = {"dtype": specs[name].dtype, "shape": list(specs[name].shape), "data_offsets": [begin, end]}
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % _ALIGNMENT)
    # Under its name only when it is whole, as the library does it.
    part = path.with_name(f".{path.name[:200]}.{secrets.token_hex(8)}.part")
    try:
        with part.open("xb", buffering=0) as file:
            _put(file, len(header).to_bytes(8, "little") + header)
            piece = bytearray(_PIECE_BYTES)
            copy = (ctypes.c_char * _PIECE_BYTES).from_buffer(piece)
            for name in order:
                pointer, left = specs[name].data_ptr, specs[name].data_len
                while left > 0:
                    size = min(left, _PIECE_BYTES)
                    ctypes.memmove(copy, pointer, size)
                    _put(file, memoryview(piece)[:size])
                    pointer, left = pointer + size, left - size
        part.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def _put(file: Any, data: Any) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
