"""A progress bar on a terminal, silence elsewhere. Uses rich or tqdm if installed, else draws one line itself."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

Advance = Callable[[str], None]


@contextmanager
def progress(title: str, total: int, stream: TextIO | None = None) -> Iterator[Advance]:
    """Gives a function to call after each of ``total`` steps with a short note. Draws on ``stream`` (stderr)."""
    stream = stream or sys.stderr
    if not stream.isatty():
        yield lambda note: None
        return
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        with _plain(title, total, stream) as advance:
            yield advance
        return
    with Progress(console=Console(file=stream), transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda note: bar.update(task, advance=1, description=f"{title} {note}")


@contextmanager
def _plain(title: str, total: int, stream: TextIO) -> Iterator[Advance]:
    done, start, width = 0, time.monotonic(), 30

    def advance(note: str) -> None:
        nonlocal done
        done += 1
        filled = width * done // max(1, total)
        left = (time.monotonic() - start) / done * (total - done)
        stream.write(
            f"\r\x1b[K{title} [{'#' * filled}{'.' * (width - filled)}] {done}/{total} {note} {left:.0f} s left"
        )
        stream.flush()

    try:
        yield advance
    finally:
        stream.write("\r\x1b[K")
        stream.flush()
