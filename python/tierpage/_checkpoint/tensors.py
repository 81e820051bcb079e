"""Makes tensors of an open checkpoint file on the paged device: backed by the file, converted, or read at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from tierpage import native
from tierpage._checkpoint.files import CheckpointFile, StoredTensor
from tierpage.session import Session

__all__ = ["FileTensors", "paged_device"]

_PIECE_BYTES = 16 * 1024**2  # of a tensor that is converted


def paged_device(session: Session) -> torch.device:
    """The device whose tensors are paged, with its index where devices have one."""
    config = session.config
    return torch.device("cpu") if config.device == "cpu" else torch.device(config.device, config.device_index)


class FileTensors:
    """The tensors of one file, as a block: the file is a source of pages from its beginning to its end.

    What was made inside of the block stays backed by the file afterwards. ``whole`` works inside only, ``read_now``
    always; the caller keeps ``file`` open.
    """

    def __init__(self, session: Session, file: CheckpointFile) -> None:
        self._runtime = session.runtime
        self._library = session.library
        self._file = file
        self._sourced_bytes_min = max(1, session.config.min_paged_bytes)
        self._device = paged_device(session)
        self._place: int | None = None

    def __enter__(self) -> FileTensors:
        file = self._file
        if any(map(self.is_sourced, file.tensors.values())):
            with native.translated():
                self._place = self._runtime.add_source(file.descriptor, str(file.path), file.bytes, file.modified_ns)
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if self._place is not None:
            self._runtime.let_source_go(self._place)
            self._place = None

    def is_sourced(self, stored: StoredTensor) -> bool:
        """True for a tensor that is large enough to be paged, and so to have the file as its source."""
        return stored.bytes >= self._sourced_bytes_min

    def whole(self, stored: StoredTensor, dtype: torch.dtype) -> torch.Tensor:
        """A tensor that :meth:`is_sourced`: backed by the file, or, with another dtype than stored, converted now."""
        if self._place is None:
            raise ValueError(f"the block of {self._file.path} has ended")
        place = self._place + stored.offset
        return self._sourced(stored, place) if dtype == stored.dtype else self._converted(stored, place, dtype)

    def _sourced(self, stored: StoredTensor, place: int) -> torch.Tensor:
        tensor = torch.empty(0, dtype=stored.dtype, device=self._device)
        self._library.fill_storage(tensor.untyped_storage(), place, stored.bytes)
        # A pure view uses nothing, where set_ would; `data` is no view to autograd.
        return tensor.as_strided(stored.shape, _strides(stored.shape)).data

    def _converted(self, stored: StoredTensor, place: int, dtype: torch.dtype) -> torch.Tensor:
        target = torch.empty(stored.shape, dtype=dtype, device=self._device)
        flat = target.view(-1)
        buffer = bytearray(min(_PIECE_BYTES, stored.bytes))
        for start in range(0, stored.bytes, _PIECE_BYTES):
            size = min(_PIECE_BYTES, stored.bytes - start)
            with native.translated():
                self._runtime.read_source(place + start, memoryview(buffer)[:size])
            piece = torch.frombuffer(buffer, dtype=stored.dtype, count=size // stored.dtype.itemsize)
            first = start // stored.dtype.itemsize
            flat[first : first + piece.numel()].copy_(piece)
        return target

    def read_now(
        self, group: Sequence[StoredTensor], dtype: Callable[[StoredTensor], torch.dtype]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Names and tensors, converted where ``dtype`` says so, of neighbours in the file; one read for all of them."""
        start = group[0].offset
        buffer = bytearray(group[-1].offset + group[-1].bytes - start)
        self._file.read(start, memoryview(buffer))
        for stored in group:
            target = torch.empty(stored.shape, dtype=dtype(stored), device=self._device)
            if stored.bytes > 0:
                # Into memory of its own first: a tensor begins anywhere in the buffer, and kernels want it aligned.
                first = stored.offset - start
                content = bytearray(buffer[first : first + stored.bytes])
                target.copy_(torch.frombuffer(content, dtype=stored.dtype).view(stored.shape))
            yield stored.name, target


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides = [1]
    for size in reversed(shape[1:]):
        strides.append(strides[-1] * max(size, 1))
    return tuple(reversed(strides))[: len(shape)] if shape else ()
