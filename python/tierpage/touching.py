"""Brings paged memory in before Python code reads it past every operator: data_ptr, numpy, DLPack, pickling.

These calls never reach the interceptor. While tierpage is enabled they are replaced by functions that first touch the
pages of the storage; ``disable`` puts the originals back. Tensors that are not paged cost one comparison more.

How long a pointer is used is a guess (csrc/core/pager/guesses.h). Arrays and DLPack capsules tell when they end: until
then the memory stays, on the host device as long as nobody else needs the room, for there a view is served where it is
used.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import sys
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.jit._script import RecursiveScriptModule, ScriptModule

from tierpage.safetensors_files import around_serialize_file

if TYPE_CHECKING:
    from tierpage.native import TorchLibrary

__all__ = ["Wrappers", "storage_of"]

# (class, names). Each call reads, or hands out a pointer to, the memory of `self`.
_TENSOR_CALLS = ("data_ptr", "const_data_ptr", "numpy", "tolist", "__dlpack__", "__array__")
_TENSOR_PROPERTIES = ("__cuda_array_interface__",)
_ARRAYS = ("numpy", "__array__")  # hand out an array over the memory, or a copy
_CAPSULES = ("__dlpack__", "to_dlpack", "_to_dlpack")
_STORAGE_CALLS = (
    "data_ptr", "resize_", "tolist", "__getitem__", "__setitem__", "copy_", "fill_", "clone", "byteswap",
    "_byteswap", "_write_file", "_set_from_file", "_share_filename_cpu_", "_share_fd_cpu_", "_share_cuda_",
)  # fmt: skip
_SCRIPT_CALLS = ("save", "save_to_buffer", "_save_for_lite_interpreter", "_save_to_buffer_for_lite_interpreter")


def storage_of(tensor: torch.Tensor) -> torch.UntypedStorage | None:
    """The tensor's storage, ``None`` for sparse, nested and wrapper tensors, which have none."""
    try:
        return torch._C.TensorBase.untyped_storage(tensor)
    except (RuntimeError, NotImplementedError):
        return None


class Wrappers:
    """The replaced methods of torch. ``install`` and ``remove`` may be called repeatedly."""

    def __init__(self, library: TorchLibrary, is_paged: Callable[[int], bool]) -> None:
        self._library = library
        self._is_paged = is_paged
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
            for owner in (ScriptModule, RecursiveScriptModule):  # each has its own copy of them
                for name in _SCRIPT_CALLS:
                    self._replace(owner, name, self._around_script_save)
            self._replace(torch._C.PyTorchFileWriter, "write_record", self._around_write_record)
            if torch.distributed.is_available():
                self._replace(torch.distributed.ProcessGroup, "_end_coalescing", self._around_end_of_batch)
            for module in (torch, torch.utils.dlpack):
                self._replace(module, "to_dlpack", self._around_tensor_call)
            self._replace_in_safetensors()
        except BaseException:
            self.remove()
            raise

    def _replace_in_safetensors(self) -> None:
        """In the package too, where modules of it that are imported later find it."""
        if importlib.util.find_spec("safetensors") is None:
            return
        importlib.import_module("safetensors")
        around = around_serialize_file(self._is_paged)
        for name, module in list(sys.modules.items()):
            if name.split(".")[0] == "safetensors" and hasattr(module, "serialize_file"):
                self._replace(module, "serialize_file", around)

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

    def _touch(self, storage: torch.UntypedStorage) -> int:
        """The address of its memory if that is paged, else 0."""
        address = self._library.storage_address(storage)
        if not self._is_paged(address):
            return 0
        self._library.touch(address)
        return address

    def _around_tensor_call(self, original: Callable[..., Any]) -> Callable[..., Any]:
        touch = self._touch
        name = original.__name__
        watch = self._watch_array if name in _ARRAYS else self._watch_capsule if name in _CAPSULES else None

        @functools.wraps(original)
        def touched(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            storage = storage_of(self)
            address = 0 if storage is None else touch(storage)
            result = original(self, *args, **kwargs)
            if address and watch is not None:
                watch(address, result)
            return result

        return touched

    def _around_end_of_batch(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Where messages are sent in batches no operator tells that a batch has been queued: csrc/torch/pending_works.h."""
        library = self._library

        @functools.wraps(original)
        def ended(self: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return original(self, *args, **kwargs)
            finally:
                library.end_batch()

        return ended

    def _watch_array(self, address: int, array: Any) -> None:
        if array.flags.owndata:
            return  # a copy
        self._library.view(address, 1)
        weakref.finalize(array, self._library.view, address, -1).atexit = False

    def _watch_capsule(self, address: int, capsule: Any) -> None:
        self._library.watch_capsule(address, capsule)

    def _around_tensor_property(self, original: property) -> property:
        touch = self._touch

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

    def _around_script_save(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """C++ writes the memory of the module's CPU tensors one after the other, as if each were an array over it.

        Of those elsewhere it writes copies, which operators make; views would keep all of them there at once.
        """

        @functools.wraps(original)
        def touched(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
            storages = map(storage_of, itertools.chain(module.parameters(), module.buffers()))
            on_cpu = [storage for storage in storages if storage is not None and storage.device.type == "cpu"]
            paged = list(filter(None, map(self._touch, on_cpu)))
            for address in paged:
                self._library.view(address, 1)
            try:
                return original(module, *args, **kwargs)
            finally:
                for address in paged:
                    self._library.view(address, -1)

        return touched


class _Property(property):
    """Marks a property that this module has put in place."""
