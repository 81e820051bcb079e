"""A save that fails, is interrupted or is killed at any of its steps leaves the old checkpoint or the new one, whole."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tierpage
from tierpage._checkpoint.files import open_checkpoint

SHARD_BYTES = 4096
# How the old checkpoint and the new one are divided.
LAYOUTS = {"shards over shards": (SHARD_BYTES, SHARD_BYTES), "fewer shards over shards": (SHARD_BYTES, 2 * SHARD_BYTES),
           "shards over a file": (None, SHARD_BYTES), "a file over shards": (SHARD_BYTES, None),
           "a file over a file": (None, None)}  # fmt: skip
# Whatever a save does to names goes through these.
CALLS = ("open", "replace", "unlink", "fsync")
STEPS_MAX = 60


def content(value: float) -> dict[str, torch.Tensor]:
    return {f"w{i}": torch.full((SHARD_BYTES // 4,), value) for i in range(3)}


def values(folder: Path) -> set[float]:
    """The values in the checkpoint that the folder holds; every tensor is there."""
    files = open_checkpoint(folder)
    for file in files:
        file.close()
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        tensors.update(load_file(file.path))
    assert sorted(tensors) == ["w0", "w1", "w2"]
    return {float(value) for tensor in tensors.values() for value in tensor.unique()}


def at_step(step: int, action: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lets the step-th call that changes names do `action` before or instead; returns how many calls there were."""
    count = [0]

    def wrapped(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            count[0] += 1
            if count[0] == step:
                action()
            return real(*arguments, **named)

        return call

    for name in CALLS:
        monkeypatch.setattr(os, name, wrapped(getattr(os, name)))
    return count


def old_and_new(folder: Path, layout: str) -> Callable[[], Any]:
    before, after = LAYOUTS[layout]
    tierpage.save(content(1.0), folder, max_shard_bytes=before)
    return lambda: tierpage.save(content(2.0), folder, max_shard_bytes=after)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_killed_at_every_step(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in range(1, STEPS_MAX):
        folder = tmp_path / str(step)
        folder.mkdir()
        save = old_and_new(folder, layout)
        child = os.fork()
        if child == 0:
            at_step(step, lambda: os._exit(9), monkeypatch)
            save()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        left = values(folder)
        assert left in ({1.0}, {2.0}), f"step {step}"
        if os.waitstatus_to_exitcode(status) == 0:
            assert left == {2.0}
            return
        # The next save works whatever was left, and what it leaves can be found.
        save()
        assert values(folder) == {2.0}
    raise AssertionError("a save has more steps than were tried")


@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), KeyboardInterrupt()], ids=["error", "interrupt"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_failed_at_every_step(
    layout: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise error

    for step in range(1, STEPS_MAX):
        folder = tmp_path / str(step)
        folder.mkdir()
        save = old_and_new(folder, layout)
        before = sorted(path.name for path in folder.iterdir())
        with monkeypatch.context() as patch:
            count = at_step(step, fail, patch)
            raised = None
            try:
                save()
            except (tierpage.StorageError, tierpage.TierpageWarning, KeyboardInterrupt) as caught:
                raised = caught
        left = values(folder)
        assert left in ({1.0}, {2.0}), f"step {step}"
        assert raised is not None or left == {2.0}
        if left == {1.0} and not any(name.endswith(".part") for name in os.listdir(folder)):
            names = sorted(path.name for path in folder.iterdir())
            # Nothing is left over, unless the old file is only waiting to be removed.
            assert names == before or set(before) < set(names)
        if count[0] < step:
            assert raised is None
            return
    raise AssertionError("a save has more steps than were tried")


def test_shards_replace_no_file_and_leave_no_old_one(tmp_path: Path) -> None:
    names = []
    for value in (1.0, 2.0, 3.0):
        written = tierpage.save(content(value), tmp_path, max_shard_bytes=SHARD_BYTES)
        names.append({path.name for path in written[:-1]})
        assert {path.name for path in tmp_path.iterdir()} == {path.name for path in written}
        assert values(tmp_path) == {value}
    assert names[0] == {f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)}
    assert names[0].isdisjoint(names[1])
    assert names[1].isdisjoint(names[2])


def test_shards_of_a_killed_save_go_with_the_next_one(tmp_path: Path) -> None:
    """Files of the usual names that no index names yet."""
    (tmp_path / "model-00002-of-00003.safetensors").write_bytes(b"half")
    written = tierpage.save(content(1.0), tmp_path, max_shard_bytes=SHARD_BYTES)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in written}
    assert values(tmp_path) == {1.0}
