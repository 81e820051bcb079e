"""The command ``tierpage top``."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

from tierpage._top import drawing
from tierpage._top.figures import Figures, figures
from tierpage._top.places import Name, PlaceError
from tierpage._top.reading import Look, look
from tierpage._top.screen import Screen

INTERVAL_SECONDS_LEAST, INTERVAL_SECONDS_MOST = 0.1, 3600.0


class NoProgram(Exception):
    """The program that was asked for cannot be looked at; the message says what may be the reason."""


def interval(text: str) -> float:
    """Reads --interval, in seconds. Raises argparse.ArgumentTypeError, which names the limits."""
    with suppress(ValueError):
        if INTERVAL_SECONDS_LEAST <= float(text) <= INTERVAL_SECONDS_MOST:
            return float(text)
    raise argparse.ArgumentTypeError(
        f"{text!r} is no interval: give seconds from {INTERVAL_SECONDS_LEAST:g} to {INTERVAL_SECONDS_MOST:g}"
    )


def process(text: str) -> int:
    """Reads PID. Raises argparse.ArgumentTypeError."""
    with suppress(ValueError):
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no process id: give a number, or none, for a row for each program")


def run(options: argparse.Namespace) -> int:
    """Shows what programs do until the user ends it, or once. Returns 0, or 2 with one line on stderr."""
    watch = Watch(options.pid)
    try:
        watch.look()
        if options.json or options.once or not _on_terminal():
            if watch.programs:  # a rate needs two looks
                time.sleep(options.interval)
                watch.look()
            _print_once(watch, options.json)
        else:
            _live(watch, options.interval)
    except (NoProgram, PlaceError) as error:
        print(f"tierpage top: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


class Watch:
    """Looks again and again, and keeps the look before."""

    def __init__(self, process: int | None) -> None:
        self.process = process
        self.programs: list[Figures] = []
        self._before: dict[Name, Figures] = {}

    def look(self) -> None:
        """Asks once more. Raises NoProgram where the one that is wanted is not there, PlaceError as ``look`` does."""
        looks = look(self.process)
        if self.process is not None and not looks:
            raise NoProgram(_why_none(self.process, known=bool(self._before)))
        self.programs = [self._figures(one) for one in looks]
        self._before = {one.look.name: one for one in self.programs}

    def _figures(self, now: Look) -> Figures:
        before = self._before.get(now.name)
        return figures(now, before.look, before.history) if before is not None else figures(now, None)

    def lines(self) -> list[str]:
        """What there is to see."""
        if self.process is None:
            return drawing.overview(self.programs)
        return [line for one in self.programs for line in (*drawing.details(one), "")][:-1]


def _why_none(process: int, known: bool) -> str:
    if known:
        return f"process {process} has ended, or has switched tierpage off."
    if not os.path.exists(f"/proc/{process}"):
        return f"there is no process {process}: `tierpage top` without a number shows those that page."
    return (
        f"process {process} does not page, or cannot be seen: it is another user's, or has top=False, or another "
        "XDG_RUNTIME_DIR or TMPDIR. `tierpage top` without a number shows those that can be seen."
    )


def _on_terminal() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM") not in (None, "", "dumb")


def _print_once(watch: Watch, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"programs": [one.as_json() for one in watch.programs]}, indent=2))
    else:
        _say(watch.lines())


def _say(lines: Sequence[str]) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    print("\n".join(lines).encode(encoding, "replace").decode(encoding))


def _live(watch: Watch, seconds: float) -> None:
    try:
        with Screen() as screen:
            while _drawn(screen, watch, seconds):
                watch.look()
    except NoProgram as error:  # it was there, and has been looked at to its end
        print(f"tierpage top: {error}")


def _drawn(screen: Screen, watch: Watch, seconds: float) -> bool:
    """Shows what is known until it is time for the next look. False where the user has ended it, or the terminal is gone."""
    count = len(watch.programs) if watch.process is None else None
    lines = [drawing.title(count, seconds, time.strftime("%H:%M:%S")), "", *watch.lines()]
    until = time.monotonic() + seconds
    while not screen.ended:
        try:
            screen.draw(lines)
        except OSError:
            return False
        if screen.wait(until - time.monotonic()):
            return True
    return False
