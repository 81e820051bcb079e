"""The snapshot for torch's memory viewer: torch's own tools read it, and its sums are those of the statistics."""

from __future__ import annotations

import gc
import pickle
import pickletools
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.cuda import _memory_viz

import harness
import tierpage

# What the viewer's own reader of pickles understands.
READABLE = (
    "APPEND APPENDS BINFLOAT BINGET BININT BININT1 BININT2 BINPUT BINUNICODE EMPTY_DICT EMPTY_LIST EMPTY_TUPLE FRAME "
    "LONG1 LONG_BINGET LONG_BINPUT MARK MEMOIZE NEWFALSE NEWTRUE NONE PROTO SETITEM SETITEMS SHORT_BINUNICODE STOP "
    "TUPLE TUPLE1 TUPLE2 TUPLE3"
)


@pytest.fixture
def tight(device: str, tmp_path: Path) -> dict[str, Any]:
    """Three tiers, of which the first two are small."""
    return dict(harness.settings("clock", str(tmp_path)) or {}) | {
        "host_budget": "2MiB" if device == "cpu" else "64MiB"
    }


def tensor_of(device: str, pages: int = 1) -> torch.Tensor:
    return torch.ones(pages * (64 * harness.MIB if device == "cuda" else 65536), device=device)


def settled() -> dict[str, float]:
    """The statistics, when nothing has moved for a while."""
    now: dict[str, float] = {}
    for _ in range(100):
        before, now = now, dict(tierpage.memory_stats())
        names = [name for name in now if name.startswith(("resident_bytes", "overflow_bytes", "live_bytes"))]
        if all(before.get(name) == now[name] for name in names):
            break
        time.sleep(0.05)
    return now


def sizes(snapshot: dict[str, Any], number: int) -> int:
    return sum(segment["total_size"] for segment in snapshot["segments"] if segment["device"] == number)


def segments_of(snapshot: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [row for row in snapshot["segments"] if any(f["filename"] == name for f in row["blocks"][0]["frames"])]


def test_sums_are_those_of_the_statistics(tight: dict[str, Any], device: str) -> None:
    with tierpage.enable(**tight):
        held = [tensor_of(device) for _ in range(14)]
        stats = settled()
        assert all(stats[f"resident_bytes.{tier}.current"] > 0 for tier in ("device", "host", "nvme"))
        snapshot = tierpage.memory_snapshot()
        assert sizes(snapshot, 0) == stats["resident_bytes.device.current"] + stats["overflow_bytes.current"]
        assert sizes(snapshot, 1) == stats["resident_bytes.host.current"]
        assert sizes(snapshot, 2) == stats["resident_bytes.nvme.current"]
        assert sizes(snapshot, 3) == 0
        for segment in snapshot["segments"]:
            (block,) = segment["blocks"]
            assert block["address"] == segment["address"]
            assert block["size"] == block["requested_size"] == segment["total_size"]
        places = [tierpage.where(tensor) for tensor in held]
        for number, tier in enumerate(("device", "host", "nvme")):
            regions = [row["total_size"] for row in snapshot["segments"] if row["device"] == number and row["address"]]
            assert sorted(regions) == sorted(getattr(place, tier) for place in places if getattr(place, tier))


def test_torch_reads_it(tight: dict[str, Any], device: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with tierpage.enable(**tight):
        held = [tensor_of(device) for _ in range(14)]
        settled()
        path = tmp_path / "snapshot.pickle"
        before = sorted(tmp_path.iterdir())
        tierpage.dump_snapshot(path)
        assert sorted(tmp_path.iterdir()) == sorted([*before, path])
        del held
    data = path.read_bytes()
    assert {operation.name for operation, _, _ in pickletools.genops(data)} <= set(READABLE.split())
    snapshot = pickle.loads(data)
    total = sum(segment["total_size"] for segment in snapshot["segments"])
    said = _memory_viz.segsum(snapshot)
    assert f"segments: {len(snapshot['segments'])}\n" in said
    assert f"total_reserved: {_memory_viz.Bytes(total)}\n" in said
    for lines in (_memory_viz.segments(snapshot, str), _memory_viz.memory(snapshot, str)):
        counts = [int(line.rpartition(" ")[2]) for line in lines.splitlines()]
        assert sum(counts) == total
        assert "RAM:0:tier;" in lines
        assert "gaps" not in lines
    assert _memory_viz.compare(snapshot["segments"], [], str).count("only_before") == len(snapshot["segments"])
    assert "only_before" in capsys.readouterr().out
    assert _memory_viz.trace(snapshot) == ""
    for page in (_memory_viz.segment_plot(snapshot), _memory_viz.trace_plot(snapshot)):
        assert "snapshot.pickle" in page


def test_blocks_are_named(options: dict[str, Any], device: str) -> None:
    with tierpage.enable(**options):
        wide = 256 if device == "cpu" else 4096
        model = torch.nn.Sequential(torch.nn.Linear(wide, wide, device=device), torch.nn.ReLU())
        optimizer = torch.optim.AdamW(model.parameters())
        model(torch.ones(wide, wide, device=device)).sum().backward()
        optimizer.step()
        alone = torch.ones(wide, wide, device=device)
        view = alone[1:]
        with tierpage.pin(alone):
            snapshot = tierpage.memory_snapshot()
        weight = model[0].weight
        kind = f"float32 [{wide}, {wide}]"
        for name in ("Sequential.0.weight", "Sequential.0.weight.grad", "AdamW of Sequential.0.weight: exp_avg"):
            rows = segments_of(snapshot, name)
            assert rows, name
            first, storage, tier = rows[0]["blocks"][0]["frames"]
            assert (first["filename"], first["name"]) == (name, kind)
            assert storage["filename"].startswith("storage of ")
            assert tier["name"] == "tier"
        assert segments_of(snapshot, "Sequential.0.weight")[0]["address"] == weight.untyped_storage().data_ptr()
        (pinned,) = [row for row in snapshot["segments"] if row["blocks"][0]["frames"][-2]["name"] == "pinned"]
        assert pinned["device"] == 0
        assert [frame["name"] for frame in pinned["blocks"][0]["frames"][:2]] == [kind, f"float32 [{wide - 1}, {wide}]"]
        del view


def unnamed(snapshot: dict[str, Any]) -> list[tuple[int, int]]:
    """Address and size of each segment of a tensor that only C++ has."""
    rows = segments_of(snapshot, "a tensor that no Python object holds")
    return sorted((row["address"], row["total_size"]) for row in rows)


def test_what_python_does_not_hold_has_rows_of_its_own(options: dict[str, Any], device: str) -> None:
    with tierpage.enable(**options):
        gc.collect()
        leaves = [tensor_of(device, pages).requires_grad_() for pages in (1, 2, 1)]
        results = [(leaf * 2).exp().sum() for leaf in leaves]  # exp saves its result, which Python has no name for
        settled()
        snapshot = tierpage.memory_snapshot()
        rows = unnamed(snapshot)
        assert sorted(size for _, size in rows) == sorted(leaf.nbytes for leaf in leaves)
        assert not [row for row in snapshot["segments"] if row["address"] == 0 and row["allocated_size"]]
        del leaves[0], results[0]  # leaves holes
        gc.collect()
        settled()
        left = unnamed(tierpage.memory_snapshot())
        assert sorted(size for _, size in left) == sorted(leaf.nbytes for leaf in leaves)
        assert set(left) < set(rows)


def test_live_memory_that_is_not_found_in_time_is_the_rest(
    options: dict[str, Any], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search for what Python does not hold has an end. What Python holds is there in any case."""
    monkeypatch.setattr("tierpage.viewer._PROBES_MOST", 0)
    with tierpage.enable(**options):
        leaf = tensor_of(device).requires_grad_()
        result = (leaf * 2).exp().sum()
        settled()
        snapshot = tierpage.memory_snapshot()
        assert leaf.untyped_storage().data_ptr() in {row["address"] for row in snapshot["segments"]}
        rest = [row for row in snapshot["segments"] if row["address"] == 0]
        assert any("no Python object" in row["blocks"][0]["frames"][0]["filename"] for row in rest)
        assert sum(row["allocated_size"] for row in rest) >= leaf.nbytes
        del result


def test_a_checkpoint_in_place_is_a_device_of_its_own(options: dict[str, Any], device: str, tmp_path: Path) -> None:
    wide = 256 if device == "cpu" else 4096
    file = tmp_path / "model.safetensors"
    tierpage.save(torch.nn.Linear(wide, wide, device=device), file)
    with tierpage.enable(**options | {"nvme_path": str(tmp_path), "nvme_budget": "64MiB"}):
        model = torch.nn.Linear(wide, wide, device=device)
        tierpage.load(model, file)
        settled()
        snapshot = tierpage.memory_snapshot()
        assert sizes(snapshot, 3) >= model.weight.nbytes
        assert sizes(snapshot, 2) == tierpage.memory_stats()["resident_bytes.nvme.current"]


def test_odd_objects_harm_nothing(options: dict[str, Any], device: str) -> None:
    """Modules half made or in a circle, tensors without memory, several storages over the same memory."""
    with tierpage.enable(**options):
        half = torch.nn.Module.__new__(torch.nn.Module)
        circle = torch.nn.Module()
        circle.inner = torch.nn.Module()
        circle.inner.outer = circle
        circle.inner.weight = torch.nn.Parameter(tensor_of(device))
        other = [torch.ones(4, 4).to_sparse(), torch.ones(1, device="meta"), torch.empty(0, device=device)]
        other.append(torch.nested.as_nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged))
        slices = torch.frombuffer(memoryview(tensor_of(device).cpu().numpy())[1024:], dtype=torch.float32)
        snapshot = tierpage.memory_snapshot()
        assert device == "cuda" or segments_of(snapshot, "Tensor")[0]["address"] == slices.data_ptr() - 4096
        assert any(row["address"] for row in snapshot["segments"])
        addresses = [(row["device"], row["address"]) for row in snapshot["segments"]]
        assert len(set(addresses)) == len(addresses)
        del half, other, slices
        circle.inner.outer = None
