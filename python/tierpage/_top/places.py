"""Where programs that page can be asked: one socket for each, in a folder that only its user can enter.

A socket is named after its process: the process id, when that process began, and the space that the id is of. So a
later process with the same id is no other's owner, and nobody judges an id of another container by his own processes.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

_FOLDER = "tierpage"
_NAMES_MOST = 10_000
_DIGITS_MOST = 20


class PlaceError(OSError):
    """There is no folder that is private; the message says why."""


@dataclass(frozen=True)
class Name:
    """The name of a socket. ``began`` counts clock ticks since the machine started, ``space`` is an inode number."""

    process: int
    began: int
    space: int

    def __str__(self) -> str:
        return f"{self.process}.{self.began}.{self.space}"

    @property
    def hidden(self) -> str:
        """What the socket is called until somebody listens."""
        return f".{self}"


def name_of(text: str) -> Name | None:
    """Reads the name of a socket, hidden or not; None for any other name."""
    parts = text.removeprefix(".").split(".")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() and len(part) <= _DIGITS_MOST for part in parts):
        return None
    return Name(*map(int, parts))


def own_name() -> Name:
    """The name for this process. Raises OSError where /proc does not tell."""
    began = _began(os.getpid())
    if began is None:
        raise PlaceError("/proc does not tell when this process began")
    return Name(os.getpid(), began, _own_space())


def is_over(name: Name) -> bool:
    """True where the process is known to have ended. One of another space of process ids is never known to."""
    try:
        return name.space == _own_space() and _began(name.process) != name.began
    except OSError:  # /proc tells nothing here
        return False


def _own_space() -> int:
    return os.stat("/proc/self/ns/pid").st_ino


def _began(process: int) -> int | None:
    """When a process began; None where there is none of this id."""
    try:
        with open(f"/proc/{process}/stat", "rb") as file:
            # The program's name is in parentheses and may hold anything, more of them too.
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(fields[19])


def folders() -> list[str]:
    """The folders to look at, the one that programs prefer first."""
    user = os.geteuid()
    found = [os.path.join(tempfile.gettempdir(), f"{_FOLDER}-{user}")]
    for runtime in (os.environ.get("XDG_RUNTIME_DIR", ""), f"/run/user/{user}"):
        with suppress(OSError):
            # sudo may leave the one of another user in the environment, who is not to find anything of ours there.
            if os.path.isabs(runtime) and os.stat(runtime).st_uid == user:
                return [os.path.join(runtime, _FOLDER), *found]
    return found


@contextmanager
def opened(path: str) -> Iterator[int]:
    """The descriptor of a folder that is this user's alone. Raises PlaceError where it is not, OSError where it is missing.

    What is done by this descriptor is done in that folder, whatever becomes of its path.
    """
    descriptor = _open(path)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def private_folder() -> Iterator[tuple[str, int]]:
    """Path and descriptor of the first folder that can be had, made where it is missing. Raises PlaceError where none can."""
    problems = []
    for path in folders():
        try:
            with suppress(FileExistsError):
                os.mkdir(path, 0o700)
            descriptor = _open(path)
        except OSError as error:
            problems.append(str(error))
            continue
        try:
            yield path, descriptor
        finally:
            os.close(descriptor)
        return
    raise PlaceError("; ".join(problems))


def _open(path: str) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    found = os.fstat(descriptor)
    problem = ""
    if found.st_uid != os.geteuid():
        problem = f"{path!r} belongs to user {found.st_uid}: remove it, or set XDG_RUNTIME_DIR to a folder of your own"
    elif stat.S_IMODE(found.st_mode) & 0o077:
        problem = f"{path!r} is open to other users: remove it, or `chmod 700` it"
    if problem:
        os.close(descriptor)
        raise PlaceError(problem)
    return descriptor


def address_in(folder: int, text: str) -> str:
    """The address of a socket in an open folder; short however long the folder's path is, as addresses have to be."""
    return f"/proc/self/fd/{folder}/{text}"


def names_in(folder: int) -> list[Name]:
    """The sockets in a folder whose processes may live. What others have left behind is removed."""
    found = []
    for text in os.listdir(folder)[:_NAMES_MOST]:
        name = name_of(text)
        if name is None or not _is_own_socket(folder, text):
            continue
        if is_over(name):
            remove(folder, text)
        elif not text.startswith("."):
            found.append(name)
    return sorted(found, key=lambda name: (name.process, name.began))


def remove(folder: int, text: str) -> None:
    """Removes a name from a folder, if it is there."""
    with suppress(OSError):
        os.unlink(text, dir_fd=folder)


def _is_own_socket(folder: int, text: str) -> bool:
    try:
        found = os.stat(text, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return False
    return stat.S_ISSOCK(found.st_mode) and found.st_uid == os.geteuid()
