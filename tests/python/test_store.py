"""The NVMe tier as a user has it: several drives, what is written, what is said."""

from __future__ import annotations

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
