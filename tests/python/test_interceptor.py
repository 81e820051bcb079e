"""The torch library against an engine that lets nothing be touched that was not announced (tests/torch_fake_engine)."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tierpage import native

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "tests" / "torch_fake_engine"


@pytest.mark.skipif(shutil.which("g++") is None, reason="builds the engine's stand-in with g++")
def test_programs_give_the_same_bits_and_touch_only_what_they_announce(tmp_path: Path) -> None:
    engine = tmp_path / "libfake_engine.so"
    subprocess.run(
        ["g++", "-std=c++20", "-O1", "-fPIC", "-shared", f"-I{ROOT / 'csrc'}", str(FOLDER / "fake_engine.cpp"), "-o", str(engine)],
        check=True, timeout=300,
    )  # fmt: skip
    library = native.find_libraries()[native.torch_minor()]
    run = subprocess.run(
        [sys.executable, "check.py", str(library), str(engine)],
        cwd=FOLDER, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert "ok  deferral" in run.stdout
