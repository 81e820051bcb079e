"""Fixtures and markers of the tests that run paged programs; see harness.py."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# The tests are imported one by one (import-mode=importlib), so their helpers need the folder on the path.
sys.path.insert(0, str(Path(__file__).parent))

import harness

if TYPE_CHECKING:
    from top_programs import Program


def cuda_missing() -> str | None:
    """Why the CUDA tests cannot run here; None if they can."""
    import torch

    return None if torch.cuda.is_available() else "TIERPAGE_TEST_DEVICE=cuda, but torch finds no CUDA device"


def pytest_configure(config: pytest.Config) -> None:
    if harness.DEVICE not in ("cpu", "cuda"):
        raise pytest.UsageError(f"TIERPAGE_TEST_DEVICE={harness.DEVICE!r}: give cpu or cuda")


def pytest_report_header() -> str:
    return f"tierpage test device: {harness.DEVICE}"


@pytest.fixture(scope="session")
def device() -> str:
    """The device under test; skips, with the reason, where it is missing."""
    reason = cuda_missing() if harness.DEVICE == "cuda" else None
    if reason is not None:
        pytest.skip(reason)
    return harness.DEVICE


@pytest.fixture
def options(device: str, tmp_path: Path) -> dict[str, object]:
    """Arguments of enable: two tiers, small granules, no paranoid mode. Tests change what they need."""
    chosen = dict(harness.settings("paranoid", str(tmp_path)) or {})
    chosen["paranoid"] = False
    return chosen


@pytest.fixture(autouse=True)
def empty_cache() -> None:
    """On CUDA: what earlier tests left with torch's own allocator would count against the device budget."""
    if harness.DEVICE == "cuda":
        import gc

        import torch

        gc.collect()
        torch._C._cuda_clearCublasWorkspaces()  # each keeps the segment that it lies in
        torch.cuda.empty_cache()


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    import torch

    torch.set_num_threads(int(os.environ.get("TIERPAGE_TEST_THREADS", "1")))


@pytest.fixture
def top_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the programs of a test of ``tierpage top`` can be asked, and nobody else; not made yet."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path / "tierpage"


@pytest.fixture
def top_program(top_folder: Path) -> Iterator[Program]:
    """A process with tierpage on that does what the test says."""
    from top_programs import Program

    program = Program()
    yield program
    program.kill()
