"""Brings paged memory in before Python code reads it past every operator: data_ptr, numpy, DLPack, pickling.

These calls never reach the interceptor. While tierpage is enabled they are replaced by functions that first touch the
pages of the storage; ``disable`` puts the originals back. Tensors that are not paged cost one comparison more.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["Wrappers", "storage_of"]

_Touch = Callable[[torch.UntypedStorage], None]

# (class, names). Each call reads, or hands out a pointer to, the memory of `self`.
_TENSOR_CALLS = ("data_ptr", "const_data_ptr", "numpy", "tolist", "__dlpack__", "__array__")
_TENSOR_PROPERTIES = ("__cuda_array_interface__",)
# What these hand out may be kept: the region stays resident until it is freed. The others are kept for a while.
_ESCAPES = ("numpy", "__dlpack__", "__array__", "__cuda_array_interface__")
_STORAGE_CALLS = (
    "data_ptr", "resize_", "tolist", "__getitem__", "__setitem__", "copy_", "fill_", "clone", "byteswap",
    "_byteswap", "_write_file", "_set_from_file", "_share_filename_cpu_", "_share_fd_cpu_", "_share_cuda_",
)  # fmt: skip


def storage_of(tensor: torch.Tensor) -> torch.UntypedStorage | None:
    """The tensor's storage, ``None`` for sparse, nested and wrapper tensors, which have none."""
    try:
        return torch._C.TensorBase.untyped_storage(tensor)
    except (RuntimeError, NotImplementedError):
        return None


class Wrappers:
    """The replaced methods of torch. ``install`` and ``remove`` may be called repeatedly."""

    def __init__(self, touch: _Touch, hold: _Touch) -> None:
        self._touch = touch
        self._hold = hold
        self._undo: list[tuple[Any, str, Any]] = []

    def install(self) -> None:
        """Replaces the methods; on failure everything is as before."""
        if self._undo:
            return
        try:
            for name in _TENSOR_CALLS:
                self._replace(torch.Tensor, name, self._around_tensor_call)
            for name in _TENSOR_PROPERTIES:
                self._replace(torch.Tensor, name, self._around_tensor_property)
            for name in _STORAGE_CALLS:
                self._replace(torch.UntypedStorage, name, self._around_storage_call)
            self._replace(torch._C.PyTorchFileWriter, "write_record", self._around_write_record)
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Puts the originals back, unless somebody else has replaced them meanwhile."""
        for owner, name, previous in reversed(self._undo):
            if not getattr(owner.__dict__.get(name), "_tierpage_wrapper", False) and not isinstance(
                owner.__dict__.get(name), _Property
            ):
                continue
            if previous is None:
                delattr(owner, name)
            else:
                setattr(owner, name, previous)
        self._undo.clear()

    def _replace(self, owner: Any, name: str, around: Callable[[Any], Any]) -> None:
        original = getattr(owner, name, None)
        if original is None:
            return
        replacement = around(original)
        if not isinstance(replacement, property):
            replacement._tierpage_wrapper = True
        self._undo.append((owner, name, owner.__dict__.get(name)))
        setattr(owner, name, replacement)

    def _around_tensor_call(self, original: Callable[..., Any]) -> Callable[..., Any]:
        touch = self._hold if original.__name__ in _ESCAPES else self._touch

        @functools.wraps(original)
        def touched(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            storage = storage_of(self)
            if storage is not None:
                touch(storage)
            return original(self, *args, **kwargs)

        return touched

    def _around_tensor_property(self, original: property) -> property:
        touch = self._hold

        def touched(self: torch.Tensor) -> Any:
            storage = storage_of(self)
            if storage is not None:
                touch(storage)
            return original.fget(self)  # type: ignore[misc]

        return _Property(touched, doc=original.__doc__)

    def _around_storage_call(self, original: Callable[..., Any]) -> Callable[..., Any]:
        touch = self._touch

        @functools.wraps(original)
        def touched(self: torch.UntypedStorage, *args: Any, **kwargs: Any) -> Any:
            touch(self)
            for other in args:
                if isinstance(other, torch.UntypedStorage):
                    touch(other)
            return original(self, *args, **kwargs)

        return touched

    def _around_write_record(self, original: Callable[..., Any]) -> Callable[..., Any]:
        touch = self._touch

        @functools.wraps(original)
        def touched(self: Any, name: str, data: Any, *args: Any) -> Any:
            if isinstance(data, torch.UntypedStorage):
                touch(data)
            return original(self, name, data, *args)

        return touched


class _Property(property):
    """Marks a property that this module has put in place."""
