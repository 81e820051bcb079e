"""The programs of tests/doors: the first minutes of five kinds of people, each in an environment that holds nothing yet."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

import harness

DOORS = Path(__file__).resolve().parents[1] / "doors"
NEEDS = {
    "one_card": ("transformers", "accelerate"),
    "fine_tuner": ("transformers", "accelerate"),
    "diffusers_user": ("diffusers", "accelerate", "PIL"),
    "operator_alone": (),
    "researcher": (),
}


def lacking(door: str) -> str | None:
    return next((name for name in NEEDS[door] if importlib.util.find_spec(name) is None), None)


def enter(door: str, home: Path) -> subprocess.CompletedProcess[str]:
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV") if name in os.environ}
    tested = {name: harness.child_environment()[name] for name in ("PYTHONPATH", "OMP_NUM_THREADS")}
    home.mkdir()
    environment = {**kept, **tested, "HOME": str(home), "HF_HUB_OFFLINE": "1"}
    if harness.DEVICE == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    return subprocess.run(
        [sys.executable, str(DOORS / f"{door}.py")], cwd=home, env=environment, capture_output=True, text=True, timeout=240
    )  # fmt: skip


@pytest.fixture(scope="module")
def entered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[subprocess.CompletedProcess[str]]]]:
    """All of them, two at a time: most of their time is imports."""
    homes = tmp_path_factory.mktemp("homes")
    with ThreadPoolExecutor(1 if harness.DEVICE == "cuda" else 2) as pool:
        yield {door: pool.submit(enter, door, homes / door) for door in NEEDS if lacking(door) is None}


@pytest.mark.parametrize("door", NEEDS)
def test_door(door: str, entered: dict[str, Future[subprocess.CompletedProcess[str]]]) -> None:
    if lacking(door):
        pytest.skip(f"{lacking(door)} is not installed")
    done = entered[door].result()
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
    first = re.search(rf"^{door}: .+, after [\d.]+ s$", done.stdout, re.MULTILINE)
    assert first is not None, done.stdout
    print(first[0])
    assert "TierpageWarning" not in done.stderr


def test_every_door_is_entered() -> None:
    assert {path.stem for path in DOORS.glob("*.py")} - {"yours", "operator_program"} == NEEDS.keys()
