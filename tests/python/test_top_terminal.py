"""``tierpage top`` on a terminal, which is left as it was."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable

import pytest

import harness
from top_programs import Program

pytestmark = [
    pytest.mark.skipif(harness.DEVICE != "cpu", reason="about the command; it pages on the host device here"),
    pytest.mark.usefixtures("top_folder"),
]


class Terminal:
    """`tierpage top` on a terminal of its own."""

    def __init__(self, *words: str, columns: int = 100) -> None:
        self.ours, self.theirs = pty.openpty()
        termios.tcsetwinsize(self.theirs, (24, columns))
        self.modes = termios.tcgetattr(self.theirs)
        self.sent = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tierpage", "top", "--interval", "0.2", *words],
            stdin=self.theirs, stdout=self.theirs, stderr=self.theirs,
            env={**harness.child_environment(), "TERM": "xterm"},
        )  # fmt: skip

    def wait_for(self, text: str, count: int = 1) -> None:
        until = time.monotonic() + 60
        while self.sent.count(text) < count:
            left = until - time.monotonic()
            assert left > 0, self.sent[-2000:]
            self.read(left)

    def read(self, seconds: float) -> bool:
        """Takes what is sent, as soon as there is something."""
        if not select.select([self.ours], [], [], seconds)[0]:
            return False
        self.sent += os.read(self.ours, 65536).decode(errors="replace")
        return True

    def type(self, text: str) -> None:
        os.write(self.ours, text.encode())

    def end(self) -> int:
        """The exit code; checks that the terminal is as it was."""
        self.wait_for("\x1b[?1049l")
        code = self.process.wait(timeout=60)
        while self.read(0.2):
            pass
        assert termios.tcgetattr(self.theirs) == self.modes
        for on, off in (("\x1b[?1049h", "\x1b[?1049l"), ("\x1b[?25l", "\x1b[?25h"), ("\x1b[?7l", "\x1b[?7h")):
            assert self.sent.count(on) == self.sent.count(off) > 0
            assert self.sent.rindex(off) > self.sent.rindex(on)
        os.close(self.ours)
        os.close(self.theirs)
        return code


ENDINGS: dict[str, tuple[Callable[[Terminal], None], int]] = {
    "q": (lambda terminal: terminal.type("q"), 0),
    "ctrl-c": (lambda terminal: terminal.process.send_signal(signal.SIGINT), 0),
    "terminated": (lambda terminal: terminal.process.send_signal(signal.SIGTERM), -signal.SIGTERM),
    "hung up": (lambda terminal: terminal.process.send_signal(signal.SIGHUP), -signal.SIGHUP),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_terminal_is_left_as_it_was(ending: str) -> None:
    act, code = ENDINGS[ending]
    terminal = Terminal()
    terminal.wait_for("no program of this user pages now", count=2)
    assert termios.tcgetattr(terminal.theirs)[3] & (termios.ICANON | termios.ECHO) == 0
    act(terminal)
    assert terminal.end() == code
    assert "Traceback" not in terminal.sent


def test_stopped_and_on_again(top_program: Program) -> None:
    """Ctrl-Z gives the terminal back; later the program that is looked at ends."""
    terminal = Terminal(str(top_program.pid), columns=60)
    terminal.wait_for("live tensors", count=3)
    terminal.process.send_signal(signal.SIGTSTP)
    terminal.wait_for("\x1b[?1049l")
    # It stops a moment after that; in a group of processes without a shell it cannot, and goes on by itself.
    while "\x1b[?1049h" not in terminal.sent.partition("\x1b[?1049l")[2]:
        terminal.process.send_signal(signal.SIGCONT)
        terminal.read(0.1)
    before = terminal.sent.count("live tensors")
    terminal.wait_for("live tensors", count=before + 2)
    top_program.kill()
    terminal.wait_for(f"tierpage top: process {top_program.pid} has ended, or has switched tierpage off.")
    assert terminal.end() == 0
    for frame in re.findall(r"\x1b\[H(.*?)\x1b\[J", terminal.sent, re.DOTALL):
        assert max(len(line.rstrip("\r")) for line in frame.replace("\x1b[K", "").split("\n")) <= 60


def test_a_terminal_that_cannot_be_drawn_on_gets_one_look(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "tierpage", "top"], stdin=theirs, stdout=theirs, timeout=60, check=False,
        env={**harness.child_environment(), "TERM": "dumb", "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.returncode == 0
    assert b"\x1b" not in os.read(ours, 4096)
    os.close(ours)
    os.close(theirs)
