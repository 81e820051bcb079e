"""The benchmark of checkpoints on a small model: it runs, and what streams from the file computes the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import harness

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "checkpoint.py"


def test_a_small_model(device: str, tmp_path: Path) -> None:
    if device != "cpu":
        pytest.skip("the sizes are those of the host device")
    options = ["--device", "cpu", "--shape", "tiny", "--dtype", "float32", "--tokens", "4", "--forwards", "2"]
    budgets = ["--device-budget", "4MiB", "--host-budget", "80MiB", "--compare"]
    command = [sys.executable, str(SCRIPT), "--folder", str(tmp_path / "bench"), *options, *budgets]
    run = subprocess.run(command, capture_output=True, text=True, timeout=harness.PROGRAM_SECONDS_MAX)
    assert run.returncode == 0, run.stdout + run.stderr
    row = json.loads(run.stdout)
    assert row["equal"] is True
    assert row["spilled_bytes"] == 0
    assert row["read_gb"][0] > 0
    assert list((tmp_path / "bench").iterdir()) == []
