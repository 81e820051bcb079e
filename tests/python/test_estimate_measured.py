"""`tierpage estimate` against what an H200 was measured at (docs/benchmarks.md): within 10 %.

Each runs in a process of its own, as users run it: what other tests leave set in torch is in the way of no figure.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

import harness

TOLERANCE = 0.10
INFER = ("llama_13b", "--dtype", "bfloat16", "--host-budget", "32GiB")
TRAIN = ("llama_3b", "--mode", "train", "--batch", "4", "--host-budget", "80GiB")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "measured"),
    [
        (INFER, {"40GiB": 0.0916, "20GiB": 0.110, "16GiB": 0.183, "8GiB": 0.370, "4GiB": 0.417}),
        ((*TRAIN, "--recompute"), {"16GiB": 1.11}),
        (TRAIN, {"16GiB": 1.737}),
    ],
    ids=["infer", "recompute", "plain"],
)
def test_measured_rows(words: tuple[str, ...], measured: dict[str, float]) -> None:
    model, *options = words
    command = [sys.executable, "-m", "tierpage", "estimate", f"estimate_models:{model}", *options]
    command += ["--tokens", "2048", "--machine", "h200", "--device-budget", ",".join(measured), "--quick", "--json"]
    done = subprocess.run(command, env=harness.child_environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)["rows"]
    figures = {budget: row["seconds"] for budget, row in zip(measured, rows, strict=True)}
    assert figures == {budget: pytest.approx(seconds, rel=TOLERANCE) for budget, seconds in measured.items()}
