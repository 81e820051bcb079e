"""The NVMe tier as a user has it: several drives, what is written, what is said."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

import harness
import tierpage


@pytest.fixture
def tight(device: str, tmp_path: Path) -> dict[str, Any]:
    return dict(harness.settings("clock", str(tmp_path)) or {})


def cycle(tensors: list[torch.Tensor], rounds: int = 3) -> None:
    """Writes every tensor in turn and reads it back one round later."""
    for number in range(rounds):
        for index, tensor in enumerate(tensors):
            assert number == 0 or bool((tensor == index + number - 1).all())
            tensor.fill_(index + number)


def test_several_drives_are_striped(tight: dict[str, Any], device: str, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.mkdir()
    tight["nvme_path"] = paths
    with pytest.warns(tierpage.TierpageWarning, match="on 1 file system"):
        pager = tierpage.enable(**tight)
    with pager:
        storage = pager.config.in_force["storage"]
        assert storage.startswith("3 spill files in ")
        assert ", striped by " in storage
        assert all(str(path) in storage for path in paths)
        assert pager.config.nvme_path == tuple(map(str, paths))
        cycle(harness.make_ballast(tight))
        stats = tierpage.memory_stats()
        assert stats["fetch_bytes.nvme_to_device"] + stats["fetch_bytes.nvme_to_host"] > 0
    assert [entry.name for path in paths for entry in path.iterdir()] == []


def test_written_bytes_are_counted_and_clean_ones_written_once(tight: dict[str, Any], device: str) -> None:
    with tierpage.enable(**tight):
        tensors = harness.make_ballast(tight)
        cycle(tensors, 1)
        for _ in range(2):  # from now on they are only read
            assert all(float(tensor[0]) == index for index, tensor in enumerate(tensors))
        settled = tierpage.memory_stats()
        for _ in range(3):
            assert all(float(tensor[0]) == index for index, tensor in enumerate(tensors))
        stats = tierpage.memory_stats()
        assert stats["fetch_bytes.nvme_to_device"] > settled["fetch_bytes.nvme_to_device"]
        assert stats["nvme_write_bytes.total"] == settled["nvme_write_bytes.total"] > 0
        assert stats["nvme_write_bytes.total"] == sum(
            stats[f"writeback_bytes.{tier}_to_nvme"] for tier in ("device", "host")
        )
        assert stats["nvme_write_bytes.last_day.current"] == stats["nvme_write_bytes.total"]
        assert "written to NVMe" in tierpage.memory_summary()
        tierpage.reset_accumulated_memory_stats()
        again = tierpage.memory_stats()
        assert again["nvme_write_bytes.total"] == 0
        assert again["nvme_write_bytes.last_day.current"] == stats["nvme_write_bytes.last_day.current"]
        del tensors


def test_the_write_budget_is_exceeded_with_one_warning_and_no_error(
    tight: dict[str, Any], device: str, caplog: pytest.LogCaptureFixture
) -> None:
    tight["nvme_write_budget"] = "1MiB/day"
    with tierpage.enable(**tight):
        tensors = harness.make_ballast(tight)
        end = time.monotonic() + 3.5
        while time.monotonic() < end:
            cycle(tensors, 2)
        stats = tierpage.memory_stats()
        assert stats["nvme_write_bytes.over_budget"] == stats["nvme_write_bytes.total"] - 2**20 > 0
        assert stats["budget_bytes.nvme_write"] == 2**20
        assert "of 1.0 MiB for each 24 hours" in tierpage.memory_summary()
        said = [record for record in caplog.records if "nvme_write_budget is used up" in record.getMessage()]
        assert len(said) == 1
        del tensors


def test_an_encrypted_tier(tight: dict[str, Any], device: str) -> None:
    try:
        pager = tierpage.enable(**tight, encrypt=True, verify="full")
    except tierpage.ConfigError as error:
        pytest.skip(str(error))
    with pager:
        assert "encrypted (AES-256-XTS)" in pager.config.in_force["storage"]
        assert "writes read back" in pager.config.in_force["storage"]
        assert pager.config.in_force["encrypt"] is True
        cycle(harness.make_ballast(tight))
        assert tierpage.memory_stats()["fetch_bytes.nvme_to_device"] > 0
