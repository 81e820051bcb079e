"""The benchmark of what an operator costs: it runs, and measures what it says (it refuses to if nothing was paged)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import harness

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "operator_cost.py"


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--turns", "2", "--rounds", "2", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=harness.PROGRAM_SECONDS_MAX, check=False)


def test_a_short_run(device: str) -> None:
    done = run("--device", device)
    assert done.returncode == 0, done.stdout + done.stderr
    row = json.loads(done.stdout)
    assert min(row["plain_ns"], row["seen_ns"], row["paged_ns"]) > 100


def test_nothing_paged_is_no_measurement(device: str) -> None:
    done = run("--device", device, "--weight-kib", "64")
    assert done.returncode != 0
    assert "not what was to be measured" in done.stderr
