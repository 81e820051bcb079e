"""A disk that does not answer: Ctrl-C ends every wait, what hangs is reported, and nothing is lost when it answers again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import harness

pytestmark = pytest.mark.skipif(harness.DEVICE != "cpu", reason="the same code serves every device")

# Reads past the page cache wait as long as the file named by HANG exists.
HANGING_READS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>
static ssize_t read_later(int fd, void *buffer, size_t bytes, off64_t offset) {
  static ssize_t (*real)(int, void *, size_t, off64_t);
  if (!real) real = (ssize_t (*)(int, void *, size_t, off64_t))dlsym(RTLD_NEXT, "pread64");
  while ((fcntl(fd, F_GETFL) & O_DIRECT) && access(getenv("HANG"), F_OK) == 0) usleep(10000);
  return real(fd, buffer, bytes, offset);
}
ssize_t pread(int fd, void *buffer, size_t bytes, off_t offset) { return read_later(fd, buffer, bytes, offset); }
ssize_t pread64(int fd, void *buffer, size_t bytes, off64_t offset) { return read_later(fd, buffer, bytes, offset); }
"""

PROGRAM = """
import logging, os, pathlib, signal, sys, threading, time
import torch, tierpage
hang = pathlib.Path(os.environ["HANG"])
said = []
class Listener(logging.Handler):
    def emit(self, record):
        said.append(record.getMessage())
logging.getLogger("tierpage").addHandler(Listener())
tierpage.enable(sys.argv[1], device="cpu", device_budget="1MiB", host_budget="1MiB", nvme_budget="64MiB", prefetch=False,
                min_paged_bytes=64, granule_bytes=4096, frame_bytes_max=65536, io_workers=4, staging_slots=4,
                staging_slot_bytes=65536, stall_report_seconds=1)
if ", direct," not in tierpage.config().in_force["storage"]:
    sys.exit(77)
tensors = [torch.full((1 << 16,), float(i)) for i in range(16)]
low = next(t for t in tensors if tierpage.where(t).device == 0 and tierpage.where(t).host == 0)
hang.touch()

def interrupted(call):
    threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    start = time.monotonic()
    try:
        call()
    except KeyboardInterrupt:
        assert 0.3 < time.monotonic() - start < 10, time.monotonic() - start
    else:
        raise AssertionError("no KeyboardInterrupt")

def pinned():
    with tierpage.pin(low):
        pass

for call in (lambda: low.sum(), lambda: low.numpy(), pinned, tierpage.disable):
    interrupted(call)
assert tierpage.is_enabled()
end = time.monotonic() + 20
while not any("has made no progress" in line for line in said):
    assert time.monotonic() < end, said
    time.sleep(0.05)
line = next(line for line in said if "has made no progress" in line)
assert "nvme to device" in line and "disk read" in line, line
assert tierpage.memory_stats()["stuck_transfers.current"] >= 1
assert "hang, the oldest for" in tierpage.memory_summary()
hang.unlink()
for i, t in enumerate(tensors):
    assert bool((t == i).all()), i
while tierpage.memory_stats()["stuck_transfers.current"]:
    assert time.monotonic() < end
    time.sleep(0.05)
del low, t, tensors
tierpage.disable()
"""


def test_a_hanging_disk(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    source, library, directory = tmp_path / "hang.c", tmp_path / "hang.so", tmp_path / "disk"
    source.write_text(HANGING_READS)
    directory.mkdir()
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
    environment = {**os.environ, "LD_PRELOAD": str(library), "HANG": str(tmp_path / "hang")}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(directory)], env=environment, capture_output=True, text=True, timeout=120
    )
    if done.returncode == 77:
        pytest.skip("no direct I/O here")
    assert done.returncode == 0, done.stderr
    assert os.listdir(directory) == []
