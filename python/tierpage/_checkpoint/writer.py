"""Writes one large file past the page cache, from few buffers, so that it is either whole under its name or not there.

The bytes go to a file without the final name in the same folder; ``finish`` makes them durable, ``publish`` gives the name.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from tierpage.errors import StorageError, StorageFullError
from tierpage.system import format_bytes

__all__ = ["FileWriter"]

_ALIGNMENT = 4096
_BUFFER_BYTES = 4 * 1024**2
_BUFFERS = 8
_THREADS = 6
_FLUSH_BYTES = 64 * 1024**2  # buffered: forced out and dropped from the page cache at least this often


class FileWriter:
    """Sequential writer of a file of known size. Use it as a context manager; without ``publish`` nothing is left.

    ``buffer()`` gives memory to fill, ``filled(count)`` hands it over; what has to be read from a disk first is better
    left to the writing threads, ``fill_later``, so that reads and writes keep the disk busy at once. Memory: a few buffers
    of 4 MiB.
    """

    def __init__(self, path: Path, total_bytes: int) -> None:
        self.path = path
        self._total = total_bytes
        self._temporary = path.parent / f".{path.name[:200]}.{secrets.token_hex(8)}.part"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        self.direct = True
        with self._explained():
            try:
                self._descriptor = os.open(self._temporary, flags | os.O_DIRECT, 0o666)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                    raise
                self._temporary.unlink(missing_ok=True)  # some file systems make the file before they refuse
                self.direct = False
                self._descriptor = os.open(self._temporary, flags, 0o666)
        self._free: list[mmap.mmap] = []
        self._running: list[tuple[Future[None], mmap.mmap]] = []
        self._pool = ThreadPoolExecutor(_THREADS, "tierpage-save")
        self._current: memoryview | None = None
        self._memory: mmap.mmap | None = None
        self._filled = 0
        # Of the current buffer: place, count, how.
        self._fills: list[tuple[int, int, Callable[[memoryview], None]]] = []
        self._submitted = 0
        self._flushed = 0
        self._published = False
        try:
            with self._explained():
                self._take_space()
            self._free = [mmap.mmap(-1, _BUFFER_BYTES) for _ in range(_BUFFERS)]
        except BaseException:
            self._abandon()
            raise

    def __enter__(self) -> FileWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._published:
            self._abandon()

    def buffer(self) -> memoryview:
        """Memory for the next bytes of the file, at least one. Waits for a write to end where all buffers are full."""
        if self._current is None:
            while not self._free:
                self._settle_oldest()
            self._memory = self._free.pop()
            self._current = memoryview(self._memory)
            self._filled = 0
        return self._current[self._filled :]

    def filled(self, count: int) -> None:
        """The first ``count`` bytes of what ``buffer`` gave are the next bytes of the file."""
        self._filled += count
        if self._filled == _BUFFER_BYTES:
            self._submit()

    def fill_later(self, count: int, fill: Callable[[memoryview], None]) -> None:
        """As ``filled``, but ``fill`` writes these bytes, in another thread; what it raises comes out of a later call."""
        self._fills.append((self._filled, count, fill))
        self.filled(count)

    def write(self, content: bytes) -> None:
        """Copies ``content`` to the file."""
        done = 0
        while done < len(content):
            target = self.buffer()
            count = min(len(target), len(content) - done)
            target[:count] = content[done : done + count]
            self.filled(count)
            done += count

    def finish(self) -> None:
        """All bytes are on the disk, still without the name."""
        if self._current is not None and self._filled > 0:
            self._submit()
        while self._running:
            self._settle_oldest()
        if self._submitted != self._total:
            raise StorageError(f"'{self.path}' was to have {self._total} bytes and got {self._submitted}.", errno.EIO)
        self._release()
        with self._explained():
            os.ftruncate(self._descriptor, self._total)  # direct writes are whole blocks
            os.fsync(self._descriptor)
            if not self.direct:
                os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def claim(self, path: Path) -> bool:
        """An empty file of that name, unless somebody has it: nobody else's claim of it succeeds from here on."""
        with self._explained():
            try:
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
            except FileExistsError:
                return False
        return True

    def publish(self, path: Path) -> None:
        """Gives the finished file its name, in place of what had it. Only ``sync_folder`` makes the name durable."""
        with self._explained():
            os.replace(self._temporary, path)
        self._published = True
        self._close()

    def _take_space(self) -> None:
        if self._total == 0:
            return
        try:
            os.posix_fallocate(self._descriptor, 0, self._total)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise

    def _submit(self) -> None:
        assert self._current is not None
        assert self._memory is not None
        memory, count, offset = self._memory, self._filled, self._submitted
        self._current.release()
        self._current = None
        self._submitted += count
        padded = -(-count // _ALIGNMENT) * _ALIGNMENT if self.direct else count
        if padded > count:
            memory[count:padded] = bytes(padded - count)
        fills, self._fills = self._fills, []
        self._running.append((self._pool.submit(self._write_at, memory, padded, offset, fills), memory))

    def _write_at(
        self, memory: mmap.mmap, count: int, offset: int, fills: list[tuple[int, int, Callable[[memoryview], None]]]
    ) -> None:
        view = memoryview(memory)
        try:
            for place, length, fill in fills:
                fill(view[place : place + length])
            done = 0
            while done < count:
                moved = os.pwrite(self._descriptor, view[done:count], offset + done)
                # Direct calls must go on at an aligned place.
                done += moved // _ALIGNMENT * _ALIGNMENT if self.direct else moved
                if moved == 0:
                    raise OSError(errno.EIO, "the system makes no progress")
        finally:
            view.release()

    def _settle_oldest(self) -> None:
        future, memory = self._running.pop(0)
        with self._explained():
            future.result()
            self._free.append(memory)
            # Every buffer but those that are still being written is on its way: force out and drop what it left.
            if not self.direct and self._submitted - self._flushed >= _FLUSH_BYTES:
                self._flushed = self._submitted
                os.fdatasync(self._descriptor)
                os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except StorageError:
            raise
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            kind = StorageFullError if full else StorageError
            remedy = "free space there, or save to another disk" if full else "choose a folder that you may write to"
            raise kind(
                f"cannot save {format_bytes(self._total)} to '{self.path}': {error.strerror} (errno {error.errno}).\n"
                f"Remedy: {remedy}. What had that name before is unchanged.",
                error.errno,
            ) from error

    def _abandon(self) -> None:
        self._close()
        with contextlib.suppress(OSError):
            self._temporary.unlink()

    def _close(self) -> None:
        self._release()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _release(self) -> None:
        """Ends the threads and lets the buffers go."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._current is not None:
            self._current.release()
            self._current = None
        self._running.clear()
        self._memory = None
        self._free.clear()  # their memory goes with the last view of it


def sync_folder(folder: Path) -> None:
    """Makes names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # folders that know no fsync
            raise
    finally:
        os.close(descriptor)
