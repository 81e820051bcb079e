"""torch.distributed over gloo, or NCCL on two GPUs: what a collective uses stays until its work is over, not until its operator has returned."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed

import collectives_worker
import harness
from tierpage import touching

pytestmark = [
    pytest.mark.skipif(
        harness.DEVICE != "cpu" and torch.cuda.device_count() < 2, reason="two ranks over NCCL need two GPUs"
    ),
    pytest.mark.skipif(
        harness.DEVICE == "cpu" and not torch.distributed.is_gloo_available(), reason="this torch has no gloo"
    ),
]


def run_ranks(program: str, folder: Path, configuration: str) -> list[str]:
    """What each of the two ranks printed."""
    folder.mkdir()
    command = [sys.executable, "-m", "collectives_worker", program]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(folder), configuration],
            env=harness.child_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [rank.communicate(timeout=120) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for rank, (out, err) in zip(ranks, outputs, strict=True):
        assert rank.returncode == 0, f"{configuration}: exit {rank.returncode}\n{out[-2000:]}\n{err[-6000:]}"
    return [out for out, _ in outputs]


def test_the_end_of_a_batch_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """However it ends: no operator tells of it."""
    told: list[str] = []

    class Library:
        @staticmethod
        def end_batch() -> None:
            told.append("end")

    def queue(self: object, device: torch.device) -> str:
        told.append("queue")
        if device.type == "meta":
            raise RuntimeError("the batch is refused")
        return "work"

    group = torch.distributed.ProcessGroup
    monkeypatch.setattr(group, "_end_coalescing", queue)
    wrappers = touching.Wrappers(Library, lambda address: False)  # type: ignore[arg-type]
    wrappers.install()
    try:
        assert group._end_coalescing(None, torch.device("cpu")) == "work"  # type: ignore[arg-type]
        with pytest.raises(RuntimeError, match="refused"):
            group._end_coalescing(None, torch.device("meta"))  # type: ignore[arg-type]
    finally:
        wrappers.remove()
    assert told == ["queue", "end", "queue", "end"]
    assert group._end_coalescing is queue


@pytest.mark.parametrize("program", collectives_worker.PROGRAMS)
def test_paged_ranks_compute_what_plain_ones_do(program: str, tmp_path: Path, device: str) -> None:
    plain = run_ranks(program, tmp_path / "plain", "plain")
    paged = run_ranks(program, tmp_path / "paged", "paged")
    assert plain == paged
