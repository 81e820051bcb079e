"""Days of a program, by the count of its steps: what it uses at the end is what it used when it had warmed up.

``TIERPAGE_TEST_STEPS`` sets the number of steps (1200 by default, twenty seconds). With 100,000 it takes half an hour.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import harness

STEPS = int(os.environ.get("TIERPAGE_TEST_STEPS", "1200"))
SAMPLES = 30
SECONDS_MAX = 300 + STEPS // 5

# What the largest sample of the last third may have more than that of the third before it.
GROWTH_MAX = {
    "files": 0,
    "threads": 0,
    "spill": 64 << 10,  # the file system's own blocks of the file come and go
    # The tiers hold 3 MiB here, more or less full at the moment of a sample; the rest is malloc's, which has been seen
    # to take 3 MiB more late. In the 400 steps of a third 20 KiB lost by each would be more than this, in the long
    # variant 400 bytes.
    "resident": 8 << 20 if harness.DEVICE == "cpu" else 16 << 20,
    # A thread that came and was not joined would leave 8 MiB, and one comes every 19 steps.
    "addresses": 16 << 20 if harness.DEVICE == "cpu" else 256 << 20,
    "mappings": 150,  # frames are split and joined; a process may have 65,530
    "objects": 100,  # caches of Python's libraries; one object lost in each four steps would be seen
    "live": 2 << 20 if harness.DEVICE == "cpu" else 512 << 20,  # the sizes of the pool are drawn by lot
}


def samples_of(
    folder: Path, program: str, *words: str, environment: dict[str, str] | None = None
) -> list[dict[str, Any]]:
    text = "import json, sys, endurance_program as program\nfrom pathlib import Path\n" + program
    (folder / "spill").mkdir()
    done = harness.run_child(text, str(folder / "spill"), *words, timeout=SECONDS_MAX, environment=environment)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_steps_use_nothing_up(device: str, tmp_path: Path) -> None:
    program = "for sample in program.run(Path(sys.argv[1]), *map(int, sys.argv[2:])): print(json.dumps(sample))"
    samples = samples_of(tmp_path, program, str(STEPS), str(SAMPLES))
    assert len(samples) == SAMPLES
    middle, last = samples[SAMPLES // 3 : 2 * SAMPLES // 3], samples[2 * SAMPLES // 3 :]
    growth = {name: max(s[name] for s in last) - max(s[name] for s in middle) for name in GROWTH_MAX}
    wrong = {name: count for name, count in growth.items() if count > GROWTH_MAX[name]}
    assert not wrong, (wrong, *samples)


def growth_of_periods(folder: Path) -> dict[str, float]:
    """What one period of enable and disable leaves behind, on average, when some have been."""
    program = "for sample in program.periods(Path(sys.argv[1]), int(sys.argv[2])): print(json.dumps(sample))"
    # Left to itself malloc takes a pager's tables from mappings of their own until it has seen some freed, and from
    # then on from the heap, which grows by all of them once. That is nobody's leak, and would hide a small one.
    samples = samples_of(folder, program, "12", environment={"MALLOC_MMAP_THRESHOLD_": str(128 << 10)})
    first, last = samples[3], samples[-1]
    return {name: (last[name] - first[name]) / (len(samples) - 4) for name in first}


@pytest.fixture(scope="module")
def period(tmp_path_factory: pytest.TempPathFactory, device: str) -> dict[str, float]:
    return growth_of_periods(tmp_path_factory.mktemp("periods"))


def test_periods_leave_no_thread_file_or_object(period: dict[str, float]) -> None:
    assert [period[name] for name in ("files", "threads", "spill", "live")] == [0, 0, 0, 0]
    assert period["objects"] < 20
    assert period["mappings"] < 10


def test_periods_leave_no_memory(period: dict[str, float]) -> None:
    assert period["resident"] < 1 << 20
    assert period["addresses"] < 4 << 20
