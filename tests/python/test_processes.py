"""Several processes: two that page side by side, tensors that are sent from one to the other, workers that come and go."""

from __future__ import annotations

import json
import multiprocessing.reduction
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import harness
import tierpage
from top_programs import Program, top

CUDA = harness.DEVICE != "cpu"
MANY = (512 if CUDA else 12) * harness.MIB  # bytes of a program's tensors, half as much again as its device budget
HALF_A_BUDGET = (256 if CUDA else 4) * harness.MIB

PROGRAM = f"""
import sys, harness, tierpage, torch
harness.make_deterministic()
options = dict(harness.settings("clock", FOLDER))
options |= {{"device_budget": {2 * MANY // 3}, "host_budget": {MANY // 2}, "nvme_budget": {2 * MANY}}}
tierpage.enable(**options)

def make(start):
    global tensors
    with tierpage.paged("all"):
        tensors = [torch.full(({MANY // 96},), float(start + i), device=harness.DEVICE) for i in range(24)]

def turn():
    for tensor in tensors:
        tensor.add_(1)

def check(start):
    assert [float(tensor.min()) for tensor in tensors] == [float(start + i) for i in range(24)]
    assert [float(tensor.max()) for tensor in tensors] == [float(start + i) for i in range(24)]

def level(tier):
    return tierpage.memory_stats()[f"resident_bytes.{{tier}}.current"]

def frames():
    # Memory of the device's pages: on the host device it is shared memory of this process.
    return int(open("/proc/self/status").read().partition("RssShmem:")[2].split()[0]) << 10

for line in sys.stdin:
    exec(line.replace(" ; ", "\\n"))
    print("done", flush=True)
"""


@pytest.fixture
def two(top_folder: Path, device: str) -> Iterator[tuple[Program, Program]]:
    spill = top_folder.parent / "spill"
    spill.mkdir()
    made = [Program(PROGRAM.replace("FOLDER", repr(str(spill)))) for _ in range(2)]
    yield made[0], made[1]
    for program in made:
        program.kill()
    assert os.listdir(spill) == []


def test_one_pauses_while_the_other_works(two: tuple[Program, Program], capsys: pytest.CaptureFixture[str]) -> None:
    one, other = two
    one.do("make(0) ; turn() ; turn() ; check(2)")
    one.do(f"before = frames() ; assert level('device') >= {HALF_A_BUDGET}")
    one.do(f"assert tierpage.pause('all') >= {HALF_A_BUDGET}")
    one.do("assert level('device') == 0, level('device')")
    if not CUDA:
        one.do(f"assert frames() <= before - {HALF_A_BUDGET}, (before, frames())")

    other.do("make(1000) ; turn() ; turn() ; turn() ; check(1003)")
    code, out, _ = top("--json", capsys=capsys)
    assert code == 0
    rows = {row["pid"]: row for row in json.loads(out)["programs"]}
    assert rows.keys() == {one.pid, other.pid}
    assert all(row["problem"] is None for row in rows.values())
    assert rows[one.pid]["tiers"]["device"]["used_bytes"] == 0
    assert rows[other.pid]["tiers"]["device"]["used_bytes"] >= HALF_A_BUDGET
    assert [rows[program.pid]["live_bytes"] for program in two] == [MANY, MANY]

    one.do("assert level('device') == 0, level('device')")
    one.do("assert tierpage.resume('all') > 0 ; check(2) ; turn() ; check(3)")
    other.do("turn() ; check(1004)")
    assert [program.end() for program in two] == [0, 0]


def in_workers(name: str, folder: Path, *words: str) -> None:
    folder.mkdir()
    # Not from text: children that are spawned import the functions of a module.
    call = f"program.{name}({', '.join([repr(str(folder)), *words])})"
    harness.run_child(f"import workers_program as program; {call}", timeout=200)
    assert os.listdir(folder) == []


def test_tensors_sent_through_queues(device: str, tmp_path: Path) -> None:
    if CUDA:
        pytest.skip("about CPU tensors; those of a GPU are refused")
    in_workers("sent_through_queues", tmp_path / "spill")


def test_tensors_of_a_gpu_are_not_sent(options: dict[str, object], device: str) -> None:
    if not CUDA:
        pytest.skip("CUDA IPC")
    with tierpage.enable(**options):
        x = torch.ones(harness.MIB, device=device)
        with pytest.raises(tierpage.TierpageError, match=r"cannot be shared with another process.*Send tensor\.cpu"):
            multiprocessing.reduction.ForkingPickler.dumps(x)
        assert float(x.sum()) == x.numel()


# Each spawned worker imports torch, so that there are few.
@pytest.mark.parametrize(("start", "epochs"), [("fork", "20"), ("spawn", "3")])
def test_loaders_of_many_epochs(start: str, epochs: str, device: str, tmp_path: Path) -> None:
    if CUDA and start == "fork":
        pytest.skip("CUDA itself does not survive fork")
    in_workers("epochs_with_workers", tmp_path / "spill", repr(start), epochs)


def test_a_killed_loader_is_an_error_and_no_more(device: str, tmp_path: Path) -> None:
    if CUDA:
        pytest.skip("CUDA itself does not survive fork")
    in_workers("a_worker_is_killed", tmp_path / "spill")


@pytest.mark.parametrize(("start", "rounds"), [("fork", "10"), ("spawn", "2")])
def test_pools_come_and_go(start: str, rounds: str, device: str, tmp_path: Path) -> None:
    if CUDA:
        pytest.skip("about CPU tensors; those of a GPU are refused")
    in_workers("pools", tmp_path / "spill", repr(start), rounds)
