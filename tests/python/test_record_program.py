"""bench/record_program.py: what it records of a tiny model is consistent, and what real tensors would have done."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import sys
from pathlib import Path

import pytest

from tierpage._estimate.recording import written

PATH = Path(__file__).parents[2] / "bench" / "record_program.py"
SMALLEST = 2**12


@pytest.fixture(scope="module")
def recorder():
    """The module under test."""
    spec = importlib.util.spec_from_file_location("record_program", PATH)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", list(sys.path))
        patch.setitem(sys.modules, "record_program", module)
        spec.loader.exec_module(module)
        yield module


def tiny(recorder, name: str):
    """The named program with the tiny shape."""
    return dataclasses.replace(recorder.PROGRAMS[name], shape=recorder.SHAPES["tiny"], layers=2, batch=2, tokens=32)


@pytest.mark.parametrize("name", ["infer-13b", "train-3b", "train-3b-hooks", "train-3b-plain"])
def test_ids_are_alive_where_used_and_the_loop_closes(recorder, name: str) -> None:
    live, at_loop = set(), None
    for line in recorder.record(tiny(recorder, name), SMALLEST).lines:
        kind, *words = line.split()
        if kind == "L":
            at_loop = set(live)
        elif kind == "F":
            live.remove(int(words[0]))
        elif kind != "S":
            new = [words[0]] if kind == "A" else [w[1:].split(":")[0] for w in words if w[0] == "+"]
            used = [] if kind == "A" else [w[:-1] for w in words[2:] if w != ";" and w[0] != "+"]
            assert live.issuperset(map(int, used)), line
            assert live.isdisjoint(map(int, new)), line
            live.update(map(int, new))
    assert at_loop == live


@pytest.mark.parametrize("name", ["infer-13b", "train-3b", "train-3b-hooks", "accumulate"])
def test_fake_tensors_live_and_die_as_real_ones(recorder, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(recorder, "cuda_kernels", contextlib.nullcontext)  # the host has no such kernels
    fake = recorder.record(tiny(recorder, name), SMALLEST)
    monkeypatch.setattr(recorder, "FakeTensorMode", contextlib.nullcontext)
    assert recorder.record(tiny(recorder, name), SMALLEST).lines == fake.lines
    assert fake.late_frees == 0


def test_gradients_of_a_fused_optimizer_are_read_as_the_interceptor_announces_them(recorder) -> None:
    lines = recorder.record(tiny(recorder, "train-3b"), SMALLEST).lines
    updates = [
        group.split() for line in lines if "_fused_adamw_" in line for group in line.split(" ", 3)[3].split(" ; ")
    ]
    assert updates
    for _, gradient, *_ in updates:
        assert gradient.endswith("r")
    assert all(use.endswith("w") for parameter, _, *states in updates for use in (parameter, *states))


def test_and_written_where_they_are_unscaled(recorder) -> None:
    schema = recorder.torch.ops.aten._fused_adamw_.default._schema
    names = {argument.name for argument in schema.arguments if written(schema, argument, unscales=True)}
    assert names == {"self", "grads", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs"}


STEP = """O forward 5 0r
O forward 5 1r
O backward 5 1r +4:100
O backward 5 0r +5:100
O* aten::_fused_adamw_ 20 0w 5w 2w ; 1w 4w 3w
F 4
F 5
S
"""


def test_updates_are_moved_to_where_their_tensors_are_used_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PATH.parent))
    from deferred_program import deferred

    head = "tierpage-program 1\nA 0 100\nA 1 100\nA 2 100\nA 3 100\n"
    lines = deferred(head + STEP + STEP).splitlines()
    second = lines[lines.index("S") + 1 : lines.index("S", lines.index("S") + 1)]
    assert second == [
        "O aten::_fused_adamw_ 14.0 0w 100001r 2w", "F 100001", "O forward 5 0r",
        "O aten::_fused_adamw_ 14.0 1w 100000r 3w", "F 100000", "O forward 5 1r",
        "O backward 5 1r +100000:100", "O backward 5 0r +100001:100",  # numbered as they are made, in each step alike
    ]  # fmt: skip
    with pytest.raises(ValueError, match="no fused optimizer"):
        deferred("tierpage-program 1\nS\n")
