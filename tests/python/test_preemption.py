"""A training run that is told to end by SIGTERM, as schedulers do, goes on elsewhere with the bits of one that was not.

A signal without a handler ends the process at once, and nothing of it is left on the disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import harness
from preemption_program import FILE, STEPS, STOPPED


class Runs:
    """Runs of the training program, one after the other, in a process that forks them."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(FILE)], env=harness.child_environment(), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def start(self, folder: Path, how: str, stop_step: int = -1, stop_where: str = "") -> int:
        """The number of its process."""
        (folder / "spill").mkdir(exist_ok=True)
        self.spill, self.said = folder / "spill", []
        assert self.process.stdin is not None
        words = [str(self.spill), str(folder / "state"), how, stop_step, stop_where]
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()
        started, _, number = self.line().partition(" ")
        assert started == "started"
        return int(number)

    def end(self) -> int:
        """Its exit code. Nothing of it is left on the disk."""
        while not self.said or not self.said[-1].startswith("ended"):
            self.said.append(self.line())
            assert self.said[-1], "the process that forks has ended"
        assert os.listdir(self.spill) == []
        return int(self.said[-1].partition(" ")[2])

    def finish(self, folder: Path, how: str) -> dict[str, Any]:
        self.start(folder, how)
        assert self.end() == 0
        return dict(torch.load(folder / "state.result"))


@pytest.fixture(scope="module")
def runs(device: str) -> Iterator[Runs]:
    made = Runs()
    yield made
    made.process.kill()
    made.process.wait()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, runs: Runs) -> dict[str, torch.Tensor]:
    return dict(runs.finish(tmp_path_factory.mktemp("uninterrupted"), "plain")["values"])


def check(done: dict[str, Any], expected: dict[str, torch.Tensor], first: int) -> None:
    assert done["values"].keys() == expected.keys()
    wrong = [name for name, value in expected.items() if not torch.equal(done["values"][name], value)]
    assert not wrong, wrong
    assert done["first"] == first


@pytest.mark.parametrize(
    ("how", "where"), [("flag", "backward"), ("at once", "forward"), ("at once", "backward"), ("at once", "optimizer")]
)
def test_saved_by_a_handler_and_resumed(
    how: str, where: str, runs: Runs, tmp_path: Path, uninterrupted: dict[str, torch.Tensor]
) -> None:
    """The signal comes at a known place: between two operators of the forward pass, say."""
    runs.start(tmp_path, how, 3, where)
    assert runs.end() == STOPPED
    in_the_middle = how == "at once" and where != "optimizer"
    assert ("saved in the middle of 3" in runs.said) == in_the_middle
    done = runs.finish(tmp_path, "paged")
    check(done, uninterrupted, 3 if in_the_middle else 4)
    assert done["written"] > 0, "the run moved nothing to the disk"


def test_told_to_end_again_and_again_from_outside(
    runs: Runs, tmp_path: Path, uninterrupted: dict[str, torch.Tensor]
) -> None:
    """The signal comes anywhere, also while an operator waits for pages, and to each resumed run once more."""
    chance = random.Random(harness.SEED)
    for step in range(1, STEPS - 1, 2):
        number = runs.start(tmp_path, chance.choice(("at once", "flag")), step, "outside")
        while runs.line() != "middle":
            pass
        time.sleep(chance.random() * 0.02)
        os.kill(number, signal.SIGTERM)
        assert runs.end() == STOPPED
    done = runs.finish(tmp_path, "paged")
    check(done, uninterrupted, done["first"])
    assert done["first"] >= STEPS - 3


def test_saved_paged_and_resumed_without_tierpage(
    runs: Runs, tmp_path: Path, uninterrupted: dict[str, torch.Tensor]
) -> None:
    runs.start(tmp_path, "at once", 4, "forward")
    assert runs.end() == STOPPED
    check(runs.finish(tmp_path, "plain"), uninterrupted, 4)


@contextlib.contextmanager
def paging(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process in the middle of paging to the disk."""
    text = """
import sys, harness, tierpage, torch
harness.make_deterministic()
options = harness.settings("clock", sys.argv[1])
tierpage.enable(**options)
tensors = harness.make_ballast(options)
while True:
    for tensor in tensors:
        tensor.add_(1)
    print("turn", flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", text, str(folder)], env=harness.child_environment(), text=True, stdout=subprocess.PIPE
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def open_in(folder: Path, pid: int) -> list[os.stat_result]:
    """Files in the folder that the process has open."""
    links = list(Path(f"/proc/{pid}/fd").iterdir())
    return [os.stat(link) for link in links if os.readlink(link).startswith(str(folder))]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_without_a_handler_nothing_is_left(
    number: signal.Signals, device: str, tmp_path: Path, top_folder: Path
) -> None:
    spill = tmp_path / "spill"
    spill.mkdir()
    shared = set(os.listdir("/dev/shm"))
    with paging(spill) as process:
        assert process.stdout is not None
        for _ in range(3):
            assert process.stdout.readline() == "turn\n"
        (file,) = open_in(spill, process.pid)
        assert file.st_nlink == 0, "the spill file has a name"
        assert file.st_blocks > 0
        assert os.listdir(spill) == []
        process.send_signal(number)
        assert process.wait(timeout=60) == -number
    assert os.listdir(spill) == []
    assert set(os.listdir("/dev/shm")) <= shared
