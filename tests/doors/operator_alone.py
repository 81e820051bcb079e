"""Operator of somebody else's program: TIERPAGE_CONF and `tierpage run`, and nothing else. Compares with the program alone."""

import os
import subprocess
import sys
import time
from pathlib import Path

import yours

PROGRAM = str(Path(__file__).with_name("operator_program.py"))
SETTINGS = yours.budgets() | {"nvme_path": str(yours.FOLDER)}


def output(*command: str, **environment: str) -> tuple[str, str, float]:
    """What a program writes to stdout and stderr, and its seconds."""
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, *command], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return done.stdout, done.stderr, time.monotonic() - begin


configuration = ",".join(f"{name}:{value}" for name, value in SETTINGS.items())
paged, summary, seconds = output("-m", "tierpage", "run", "--summary", PROGRAM, TIERPAGE_CONF=configuration)
yours.first_result(f"{paged.splitlines()[0]}, its program took {seconds:.1f} s")

plain, _, seconds = output(PROGRAM)
assert paged == plain, "the output differs from that of the program alone"
print(f"operator_alone: the same output as alone, which took {seconds:.1f} s")
assert "host to device" in summary, summary
