"""How the files of a finished save get their names: at one moment, so that a save is there as a whole or not at all.

That moment is one rename: of the single file, or of the index. A shard never takes the name of a file that is there: where
its usual name is taken, all shards of that save get names of their own. So whoever reads the old index finds the old files
until the new index is in its place, and what is interrupted before, at any step, has changed nothing.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from tierpage._checkpoint.files import HEADER_BYTES_MAX, INDEX_SUFFIX, SUFFIX, load_json
from tierpage._checkpoint.writer import FileWriter, sync_folder
from tierpage.errors import StorageError, TierpageWarning

__all__ = ["index_path_of", "publish_file", "publish_shards", "usual_names"]


def index_path_of(target: Path) -> Path:
    """Where the index of the shards of ``target`` stands."""
    return target.parent / f"{target.name.removesuffix(SUFFIX)}{INDEX_SUFFIX}"


def usual_names(target: Path, count: int, generation: str = "") -> list[Path]:
    """``<stem>-00001-of-0000N.safetensors``, with a generation behind the stem if one is given."""
    stem = target.name.removesuffix(SUFFIX) + generation
    return [target.parent / f"{stem}-{number:05d}-of-{count:05d}{SUFFIX}" for number in range(1, count + 1)]


def publish_file(target: Path, writer: FileWriter) -> None:
    """One file: its name is the commit. It is found before an index of the same name, which goes then."""
    index_path = index_path_of(target)
    stale = _shards_of(index_path, target)
    writer.publish(target)
    with _explained(f"'{target}' is saved, but a failure of the machine may still undo that"):
        sync_folder(target.parent)
    with _explained(f"'{target}' is saved, but the older index '{index_path}' is still there: remove it by hand"):
        index_path.unlink(missing_ok=True)
    _remove_stale(stale)


def publish_shards(target: Path, writers: list[FileWriter], index_of: Callable[[list[Path]], bytes]) -> list[Path]:
    """Several files: the name of the index, whose content ``index_of`` makes from their names, is the commit.

    Returns the paths of the shards and of the index.
    """
    index_path = index_path_of(target)
    usual = usual_names(target, len(writers))
    with _kept_if_named(index_path, usual) as paths:
        _claim(target, writers, paths)
        for writer, path in zip(writers, paths, strict=True):
            writer.publish(path)
        with _explained(f"the shards of '{index_path}' cannot be saved. What was there before is unchanged"):
            sync_folder(target.parent)
        content = index_of(paths)
        stale = _shards_of(index_path, target).union(path for path in usual if path.exists()).difference(paths)
        with FileWriter(index_path, len(content)) as writer:
            writer.write(content)
            writer.finish()
            writer.publish(index_path)
    with _explained(f"'{index_path}' is saved, but a failure of the machine may still undo that"):
        sync_folder(target.parent)
    # The same checkpoint as one file, which would be found first.
    with _explained(f"'{index_path}' is saved, but the older '{target}' is found before it: remove that by hand"):
        target.unlink(missing_ok=True)
    _remove_stale(stale)
    return [*paths, index_path]


def _claim(target: Path, writers: list[FileWriter], paths: list[Path]) -> None:
    """Fills ``paths`` with names that were nobody's: the usual ones, else those of a new generation."""
    generation = ""
    while len(paths) < len(writers):
        candidates = usual_names(target, len(writers), generation)
        for writer, path in zip(writers, candidates, strict=True):
            if not writer.claim(path):
                break
            paths.append(path)
        else:
            return
        while paths:
            paths[-1].unlink(missing_ok=True)
            paths.pop()
        generation = f"-{secrets.token_hex(4)}"


@contextlib.contextmanager
def _kept_if_named(index_path: Path, usual: list[Path]) -> Iterator[list[Path]]:
    """Files that no index came to name are removed. The index itself is asked: an interrupt may come right behind its
    rename, when the new checkpoint is the only one."""
    paths: list[Path] = []
    try:
        yield paths
    except BaseException:
        named = _named_by(index_path)
        for path in paths:
            if path.name not in named:
                with contextlib.suppress(OSError):
                    path.unlink()
        raise


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"{what}: {error.strerror} (errno {error.errno}).", error.errno) from error


def _remove_stale(paths: set[Path]) -> None:
    for path in sorted(paths):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            warnings.warn(
                f"'{path}' of the checkpoint that was replaced is still there: {error.strerror} (errno {error.errno}). "
                "No index names it: remove it by hand.",
                TierpageWarning,
                stacklevel=4,
            )


def _named_by(index_path: Path) -> set[str]:
    """The names in an index; none where it cannot be read."""
    try:
        if index_path.stat().st_size > HEADER_BYTES_MAX:
            return set()
        places = load_json(index_path.read_bytes())["weight_map"].values()
        return {place for place in places if isinstance(place, str)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()


def _shards_of(index_path: Path, target: Path) -> set[Path]:
    """The files of the sharded checkpoint that is about to be replaced, as far as their names are of our kind."""
    stem = re.escape(target.name.removesuffix(SUFFIX))
    name = re.compile(stem + r"(-[0-9a-f]{8})?-\d{5,}-of-\d{5,}" + re.escape(SUFFIX))
    return {index_path.parent / place for place in _named_by(index_path) if name.fullmatch(place)}
