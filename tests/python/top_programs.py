"""Programs to be looked at by ``tierpage top``, real ones and liars, for the tests of that command."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import harness
from tierpage import cli
from tierpage._top import places
from tierpage._top.publishing import Publisher

INTERVAL = "0.1"
# What no name may bring to a terminal: controls, and what turns the direction of writing.
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

PROGRAM = """
import os, signal, sys, threading, time, tierpage, torch
torch.set_num_threads(1)
budgets = {"device": "cpu", "device_budget": "8MiB", "host_budget": "64MiB"}
tierpage.enable(**budgets)
tensors = []
for line in sys.stdin:
    exec(line.replace(" ; ", "\\n"))
    print("done", flush=True)
"""


class Program:
    """A process with tierpage on that does what it is told, a line of Python at a time."""

    def __init__(self, text: str = PROGRAM) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", text], env=harness.child_environment(), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self.pid = self.process.pid
        self.do("pass")

    def do(self, line: str) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        said = self.process.stdout.readline()
        assert said == "done\n", said

    def end(self) -> int:
        """Its exit code, after it has come to its end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(timeout=60)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(timeout=60)


def top(*words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code and output of the command; here stdout is no terminal."""
    code = cli.main(["top", "--interval", INTERVAL, *words])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


@contextlib.contextmanager
def published(content: dict[str, Any]) -> Iterator[Publisher]:
    """This process answers like this."""
    publisher = Publisher(lambda: content)
    publisher.start()
    try:
        yield publisher
    finally:
        publisher.stop()


@contextlib.contextmanager
def address(folder: Path, name: str) -> Iterator[str]:
    """The address of a socket, short enough wherever the folder of a test is."""
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        yield places.address_in(descriptor, name)
    finally:
        os.close(descriptor)


def connected(folder: Path, name: str) -> socket.socket:
    """A socket of somebody who asks."""
    asker = socket.socket(socket.AF_UNIX)
    try:
        with address(folder, name) as where:
            asker.connect(where)
    except BaseException:
        asker.close()
        raise
    return asker


def left_behind(folder: Path, name: str) -> None:
    """A socket that nobody listens to."""
    with socket.socket(socket.AF_UNIX) as left, address(folder, name) as where:
        left.bind(where)


@contextlib.contextmanager
def answering(folder: Path, name: str, *sent: bytes, seconds_between: float = 0.0) -> Iterator[None]:
    """Somebody answers everybody with these bytes, who is not tierpage."""
    folder.mkdir(mode=0o700, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        with address(folder, name) as where:
            listener.bind(where)
        listener.listen()

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    asker, _ = listener.accept()
                    with asker, contextlib.suppress(OSError):
                        for part in sent:
                            asker.sendall(part)
                            time.sleep(seconds_between)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
