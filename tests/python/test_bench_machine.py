"""What rows of the benchmarks say of processor and links, and the generation benchmark where its library is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import harness
import tierpage

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))
import machine  # noqa: E402


def spin(seconds: float) -> None:
    """Uses the processor for so long."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_processor_seconds_are_those_of_the_thread() -> None:
    before = machine.thread_seconds()
    spin(0.3)
    used = sum((machine.thread_seconds() - before).values())
    assert 0.25 < used < 3
    sleeper = threading.Thread(target=time.sleep, args=(0.2,))
    before = machine.thread_seconds()
    sleeper.start()
    sleeper.join()
    assert sum((machine.thread_seconds() - before).values()) < 0.15


def test_idle_shares_are_of_the_time_between_two_looks(options: dict[str, Any]) -> None:
    with tierpage.enable(**{**options, "device_budget": "8MiB", "host_budget": "64MiB"}):
        weights = [torch.full((2**18,), float(i), device=harness.DEVICE) for i in range(24)]
        before = machine.look()
        for _ in range(10):
            for weight in weights:
                weight.sum().item()
        busy = machine.usage(before, machine.look())
        before = machine.look()
        time.sleep(0.2)
        idle = machine.usage(before, machine.look())
        del weights, weight
    assert 0 <= busy["idle_share"]["to_device"] < 1
    assert idle["idle_share"]["to_device"] > 0.8
    assert busy["processor_seconds"]


def test_cores_hold_the_process_and_its_children() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(BENCH)!r}); import machine, os, subprocess; machine.hold_cores(1);"
        "print(len(os.sched_getaffinity(0)), machine.provenance('cpu')['cores'], machine.torch.get_num_threads(),"
        "subprocess.check_output(['nproc'], text=True).strip())"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["1", "1", "1", "1"]
    before = os.sched_getaffinity(0)
    machine.hold_cores(0)
    assert os.sched_getaffinity(0) == before
    with pytest.raises(SystemExit):
        machine.hold_cores(-1)


@pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed")
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generation_under_pressure_has_the_same_bits(device: str, cache: str) -> None:
    command = [sys.executable, str(BENCH / "generate.py"), "--shape", "small", "--device", device, "--cache", cache]
    command += ["--device-budget", "40MiB", "--host-budget", "512MiB", "--new-tokens", "10", "--warmup", "4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=harness.PROGRAM_SECONDS_MAX, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    row = json.loads(done.stdout.splitlines()[-1])
    assert row["bits_equal"] is True
    assert row["bytes_per_token"]["fetch_bytes.host_to_device"] > 2**20
    assert row["bytes_per_token"].get("writeback_bytes.device_to_host", 0) < 2**20  # weights are only read
