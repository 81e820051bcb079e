"""Nothing of the NVMe tier outlives its process, whatever kills it, and processes in one directory leave each other alone."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import harness
import tierpage
from tierpage.system import free_bytes

KILLS = int(os.environ.get("TIERPAGE_TEST_KILLS", "10"))
SPILL_BYTES = 512 << 20

pytestmark = pytest.mark.skipif(harness.DEVICE != "cpu", reason="the same code serves every device")

# Forks one child after the other, so that torch is imported once; tierpage is enabled in the children only.
PAGE_FOR_EVER = """
import os, sys, torch, tierpage
torch.set_num_threads(1)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        path = line.strip()
        tierpage.enable(path, device="cpu", device_budget="16MiB", host_budget="16MiB", nvme_budget=int(sys.argv[1]),
                        min_paged_bytes="64kiB", granule_bytes=65536, frame_bytes_max="1MiB")
        print("enabled", flush=True)
        tensors = [torch.full((1 << 18,), float(i)) for i in range(64)]
        while True:
            for i, tensor in enumerate(tensors):
                value = float(tensor[0])
                assert bool((tensor == value).all()) and value % 64 == i, (i, value)
                tensor.add_(64)
    print(child, flush=True)
    os.waitpid(child, 0)
    print("ended", flush=True)
"""


class Forker:
    """A process that forks paging children on demand."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PAGE_FOR_EVER, str(SPILL_BYTES)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def start(self, directory: Path) -> int:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{directory}\n")
        self.process.stdin.flush()
        words = self.line()
        self.enabled = words == "enabled"
        return int(self.line() if self.enabled else words)

    def wait_ended(self) -> bool:
        """Whether the child had enabled tierpage before it ended."""
        words = self.line()
        if words == "enabled":
            self.enabled = True
            words = self.line()
        assert words == "ended"
        return self.enabled


@pytest.fixture
def forker() -> Iterator[Forker]:
    made = Forker()
    yield made
    made.process.kill()
    made.process.wait()


def space_comes_back(directory: Path, least: int) -> bool:
    """The kernel gives the blocks back a moment after the process has ended."""
    end = time.monotonic() + 10
    while free_bytes(str(directory))[0] < least:
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


@contextlib.contextmanager
def disk_of_its_own(folder: Path, size: int) -> Iterator[Path | str]:
    """A file system that nobody else uses; a text that says why where it cannot be made (no root, no loop devices)."""
    image, point = folder / "image", folder / "disk"
    point.mkdir()
    make = shutil.which("mkfs.ext4")
    if make is None or os.geteuid() != 0:
        yield "needs root and mkfs.ext4"
        return
    with image.open("wb") as file:
        file.truncate(size)
    for command in ([make, "-q", "-F", str(image)], ["mount", "-o", "loop", str(image), str(point)]):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            yield f"cannot mount a loop file system: {done.stderr}"
            return
    (point / "lost+found").rmdir()
    try:
        yield point
    finally:
        subprocess.run(["umount", str(point)], check=True)


def test_killed_at_any_point_nothing_is_left(forker: Forker, tmp_path: Path) -> None:
    """TIERPAGE_TEST_KILLS sets how often. Kills fall before, in and after the allocation of the file, and into paging."""
    chance = random.Random(harness.SEED)
    enabled = 0
    with disk_of_its_own(tmp_path, 2 * SPILL_BYTES) as disk:
        alone = isinstance(disk, Path)
        directory = disk if isinstance(disk, Path) else tmp_path / "disk"
        for number in range(KILLS):
            before = free_bytes(str(directory))[0]
            child = forker.start(directory)
            time.sleep(chance.choice((0.02, 0.2, 1.5)) * chance.random())
            os.kill(child, signal.SIGKILL)
            enabled += forker.wait_ended()
            assert os.listdir(directory) == [], number
            # Where others use the disk too: half of the spill file is far more than they move in this time.
            assert space_comes_back(directory, before if alone else before - SPILL_BYTES // 2), number
    assert enabled > KILLS // 5


def test_two_processes_share_a_directory(forker: Forker, tmp_path: Path) -> None:
    child = forker.start(tmp_path)
    try:
        chosen = dict(harness.settings("clock", str(tmp_path)) or {})
        with tierpage.enable(**chosen):
            tensors = harness.make_ballast(chosen)
            for index, tensor in enumerate(tensors):
                tensor.fill_(index)
            assert os.listdir(tmp_path) == []
            os.kill(child, signal.SIGKILL)
            assert forker.wait_ended() or True  # its end must not touch our file
            assert all(bool((tensor == index).all()) for index, tensor in enumerate(tensors))
            assert tierpage.memory_stats()["fetch_bytes.nvme_to_device"] > 0
            del tensors, tensor
    finally:
        if forker.process.poll() is None:
            subprocess.run(["kill", "-9", str(child)], check=False, stderr=subprocess.DEVNULL)
    assert os.listdir(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB of its own."""
    with disk_of_its_own(tmp_path, 64 << 20) as disk:
        if not isinstance(disk, Path):
            pytest.skip(disk)
        yield disk


def fill_up(path: Path) -> None:
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(1 << 20)):
            pass


def test_a_full_disk_is_told_at_the_start_and_afterwards_all_is_free(small_disk: Path) -> None:
    chosen = dict(harness.settings("clock", str(small_disk)) or {})
    free = free_bytes(str(small_disk))[0]
    chosen["nvme_budget"] = free + (1 << 20)
    with pytest.raises(tierpage.ConfigError, match="more than the"):
        tierpage.enable(**chosen)
    # The file system needs some blocks for itself: it fills up although its numbers said that there was room.
    chosen["nvme_budget"] = free // 4096 * 4096
    with contextlib.suppress(tierpage.StorageFullError):
        tierpage.enable(**chosen).disable()
    assert free_bytes(str(small_disk))[0] == free
    chosen["nvme_budget"] = "16MiB"
    with tierpage.enable(**chosen):
        # What is taken is ours: a disk that others fill later does not stop paging.
        filler = small_disk / "filler"
        fill_up(filler)
        tensors = harness.make_ballast(chosen)
        for index, tensor in enumerate(tensors):
            tensor.fill_(index)
        assert all(bool((tensor == index).all()) for index, tensor in enumerate(tensors))
        assert tierpage.memory_stats()["nvme_write_bytes.total"] > 0
        del tensors, tensor
    filler.unlink()
    assert free_bytes(str(small_disk))[0] == free


def test_a_file_size_limit_is_told_at_the_start(tmp_path: Path) -> None:
    import resource

    chosen = dict(harness.settings("clock", str(tmp_path)) or {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(tierpage.StorageFullError, match="ulimit -f"):
            tierpage.enable(**chosen)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []
