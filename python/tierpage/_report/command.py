"""The command ``tierpage report``, and the page that other commands write."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from tierpage._report.page import page
from tierpage._report.reading import ReportError, from_content, read_file
from tierpage.trace import write_whole

_STDOUT = "-"
_ENDINGS = (".gz", ".json")


def run(options: argparse.Namespace) -> int:
    """Writes the page of ``options.trace`` to ``options.output``. Returns 0, or 2 with one line on stderr."""
    try:
        target = options.output or _beside(options.trace)
        if target != _STDOUT:
            check_target(target, options.trace)
        content = _encoded(page(read_file(options.trace), os.path.basename(options.trace)))
        if target == _STDOUT:
            sys.stdout.buffer.write(content)
            sys.stdout.buffer.flush()
        else:
            _write(target, content)
            print(f"wrote {target}")
        return 0
    except ReportError as error:
        print(f"tierpage report: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def write_report(path: str, trace: dict[str, Any]) -> None:
    """Writes the page of a trace that is at hand as a dictionary, whose events are used up. Raises ReportError."""
    name = os.path.basename(path).removesuffix(".html")
    _write(path, _encoded(page(from_content(trace, "the trace"), name)))


def check_target(
    target: str, trace: str | None = None, remedy: str = "give another name with -o, or -o - for stdout"
) -> None:
    """Raises ReportError where the page cannot be written, or would be written over something else than a page."""
    folder = os.path.dirname(os.path.abspath(target))
    if trace is not None and os.path.exists(target) and os.path.exists(trace) and os.path.samefile(target, trace):
        raise ReportError(f"{target!r} is the trace itself: give another name with -o.")
    if os.path.lexists(target) and not os.path.isfile(target):
        raise ReportError(f"{target!r} is there and no ordinary file: {remedy}.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ReportError(f"{target!r} cannot be written: give a file in a folder that exists and is yours.")


def _beside(trace: str) -> str:
    for ending in _ENDINGS:
        trace = trace.removesuffix(ending)
    return f"{trace}.html"


def _encoded(text: str) -> bytes:
    # The name of a file may hold bytes that are no text.
    return text.encode(errors="replace")


def _write(path: str, content: bytes) -> None:
    try:
        write_whole(path, content)
    except OSError as error:
        raise ReportError(f"cannot write {path!r}: {error.strerror}. Give another name with -o.") from None
