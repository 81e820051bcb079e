"""Waits of real programs: the equation of their causes, who waited, and what the trace says of each."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tierpage
from tierpage import advice, trace

PASSES = 12


@pytest.fixture
def weights(options: dict[str, Any], device: str) -> Any:
    """Twice as many weights as fit, used in the same order again and again."""
    options["device_budget"] = "640MiB" if device == "cuda" else "2MiB"
    with tierpage.enable(**options) as pager:
        each = pager.config.device_budget // 16
        side = int((each / 4) ** 0.5)
        with tierpage.paged("weights"):
            tensors = [torch.randn(side, side, device=device) for _ in range(32)]
        yield tensors
        del tensors


def run(weights: list[torch.Tensor], passes: int = PASSES) -> None:
    x = torch.randn(4, weights[0].shape[0], device=weights[0].device)
    for _ in range(passes):
        y = x
        for weight in weights:
            y = torch.tanh(y @ weight)


def test_causes_add_up_to_the_whole_wait(weights: list[torch.Tensor]) -> None:
    for _ in range(3):
        run(weights)
        stats = tierpage.memory_stats()
        total = sum(stats[f"stall_seconds.{cause}"] for cause in advice.CAUSES)
        assert total == pytest.approx(stats["stall_seconds.total"], abs=1e-9)
        assert 0 < stats["stall_seconds.max"] <= stats["stall_seconds.total"] <= stats["elapsed_seconds"]
        assert stats["stall_seconds.allocate"] <= stats["stall_seconds.total"]
        assert max(stats[f"stall_count.{cause}"] for cause in advice.CAUSES) <= stats["stall_count.total"]
        assert stats["stall_count.total"] >= stats["faults.count"] > 0
        assert stats["link_bytes.to_device"] >= stats["fetch_bytes.host_to_device"] > 0
        assert 0 < stats["link_seconds.to_device"] < stats["elapsed_seconds"]


def test_who_waited_and_a_fresh_start(weights: list[torch.Tensor]) -> None:
    run(weights)
    text = tierpage.memory_summary()
    assert "aten::mm" in text.replace("aten::matmul", "aten::mm")
    assert "weights" in text
    assert "Predicted against measured" in text
    tierpage.reset_accumulated_memory_stats()
    stats = tierpage.memory_stats()
    assert stats["stall_seconds.total"] == stats["stall_count.total"] == stats["stall_seconds.host"] == 0
    assert stats["elapsed_seconds"] < 5
    assert "operator that waited" not in tierpage.memory_summary()


def test_the_plan_is_held_against_what_moved(weights: list[torch.Tensor]) -> None:
    for _ in range(20):
        run(weights)
        stats = tierpage.memory_stats()
        if "recurrence.uses" in stats:
            break
    assert 0 < stats["plan.fetched_bytes"] < sum(weight.nbytes for weight in weights) * stats["plan.period_uses"]
    assert stats["plan.whole_bytes"] > stats["plan.capacity_bytes"]
    assert stats["recurrence.uses"] >= stats["plan.period_uses"]
    assert stats["recurrence.elapsed_seconds"] > 0
    assert advice.moved(stats, "fetched") is not None
    assert "fetched in a recurrence" in tierpage.memory_summary()
    before = tierpage.memory_stats()["plan.whole_bytes"]
    tierpage.reset_accumulated_memory_stats()
    assert tierpage.memory_stats().get("plan.whole_bytes", before) > 0  # a level, no total


def slices_overlap(entries: list[dict[str, Any]]) -> bool:
    ends: dict[int, float] = {}
    for entry in sorted(entries, key=lambda entry: entry["ts"]):
        if entry["ts"] < ends.get(entry["tid"], 0) - 0.5:  # half a microsecond: times are doubles since 1970
            return True
        ends[entry["tid"]] = entry["ts"] + entry["dur"]
    return False


@pytest.mark.parametrize("name", ["trace.json", "trace.json.gz"])
def test_trace_of_a_program(weights: list[torch.Tensor], tmp_path: Path, name: str) -> None:
    run(weights)
    tierpage.export_trace(tmp_path / name)
    data = (tmp_path / name).read_bytes()
    content = json.loads(gzip.decompress(data) if name.endswith("gz") else data)
    entries = content["traceEvents"]
    assert all(entry["ph"] in "XCM" and isinstance(entry["pid"], int) for entry in entries)
    slices = [entry for entry in entries if entry["ph"] == "X"]
    assert not slices_overlap(slices)
    waits = [entry for entry in slices if "stall: " in entry["name"]]
    assert waits
    for wait in waits:
        arguments = wait["args"]
        assert arguments["operator"]
        causes = [value for key, value in arguments.items() if key.endswith(" us")]
        assert sum(causes) == pytest.approx(wait["dur"], abs=0.01)
        assert len(arguments["regions"]) <= 4
        assert sum(region["bytes"] for region in arguments["regions"]) <= arguments["bytes"]
        assert 0 <= arguments["predicted_bytes"] <= arguments["bytes"]
    of_weights = [wait["args"] for wait in waits if wait["args"].get("tag") == "weights" and wait["args"]["bytes"]]
    assert any("mm" in arguments["operator"] for arguments in of_weights)
    assert any(arguments["predicted"] for arguments in of_weights)
    assert not of_weights[0]["predicted"]  # the first pass
    counters = {entry["name"] for entry in entries if entry["ph"] == "C"}
    assert {"device bytes in use", "bytes arriving", "bytes leaving"} <= counters
    budget = tierpage.config().device_budget
    used = [entry["args"]["bytes"] for entry in entries if entry["name"] == "device bytes in use"]
    assert 0 < max(used) <= budget
    compared = content["otherData"]["tierpage"]
    assert compared["predicted_share"] > 0.5
    assert compared["link_to_device_bytes"] > 0


def test_trace_memory_is_bounded(options: dict[str, Any], device: str) -> None:
    with tierpage.enable(**{**options, "trace_events_max": 50}):
        tensor = torch.ones(300_000, device=device)
        for _ in range(100):
            tierpage.evict(tensor)
            tensor.add_(1)
        from tierpage.session import current

        runtime = current().runtime
        assert len(runtime.events()) == 50
        assert len(runtime.stalls()) <= 50
        assert len(runtime.levels()) <= 51
        assert len(runtime.stalled_most()["operators"]) <= 64
        assert tierpage.memory_stats()["stall_count.total"] >= 100
        del tensor
    with tierpage.enable(**{**options, "trace_events_max": 0}):
        tensor = torch.ones(300_000, device=device)
        tierpage.evict(tensor)
        tensor.add_(1)
        runtime = current().runtime
        assert runtime.events() == runtime.stalls() == runtime.levels() == []
        del tensor


def test_rows_of_a_trace_do_not_overlap_and_metadata_is_kept() -> None:
    events = [("host_to_device", start, 1_000, 64, 1) for start in (0, 500, 900, 1_000, 5_000)]
    stall = {
        "name": "aten::mm", "tag": "", "kind": "stall", "thread": 2, "start_ns": 3_000, "duration_ns": 2_000,
        "causes_ns": {"fault": 1_500, "host": 500}, "bytes": 64, "pages": 1, "predicted_bytes": 64, "region_count": 1,
        "regions": [(7, 1, 64)],
    }  # fmt: skip
    loose = {**stall, "thread": -1, "tag": "weights", "predicted_bytes": 0}
    level = {"at_ns": 2_000, "device": 1, "host": 2, "nvme": 3, "arriving": 4, "leaving": 5}
    made = trace.build_trace(
        events, {"traceEvents": [], "otherData": {"theirs": 1}}, stalls=[stall, loose, loose], levels=[level],
        compared={"predicted_share": 1.0},
    )  # fmt: skip
    slices = [entry for entry in made["traceEvents"] if entry["ph"] == "X"]
    assert len(slices) == 8
    assert not slices_overlap(slices)
    rows = {entry["args"]["name"] for entry in made["traceEvents"] if entry["name"] == "thread_name"}
    assert {"host to device", "host to device 2", "host to device 3", "waits of thread 2", "other waits 2"} <= rows
    wait = next(entry for entry in slices if entry["tid"] == 1_002)
    assert wait["name"] == "stall: aten::mm"
    assert wait["args"] == {
        "operator": "aten::mm", "fault us": 1.5, "host us": 0.5, "bytes": 64, "pages": 1, "predicted_bytes": 64,
        "region_count": 1, "regions": [{"region": 7, "pages": 1, "bytes": 64}], "predicted": True,
    }  # fmt: skip
    assert [entry["args"]["bytes"] for entry in made["traceEvents"] if entry["ph"] == "C"] == [1, 2, 3, 4, 5]
    assert made["otherData"] == {"theirs": 1, "tierpage": {"predicted_share": 1.0}}
    json.dumps(made)
