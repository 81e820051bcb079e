"""bench/peers: a peer computes what the plain run computes, and one whose library is missing says so and harms nobody."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """The folder's modules, importable for as long as this file's tests run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        before = set(sys.modules)
        import peers.double_buffer
        import peers.job
        import peers.registry
        import peers.run

        yield peers
        for name in set(sys.modules) - before:
            if str(BENCH) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]


def run(*arguments: str) -> dict[str, dict[str, Any]]:
    """The rows of one call, by peer."""
    command = [sys.executable, str(BENCH / "peers" / "run.py"), *arguments]
    options = ["--shape", "tiny", "--device", "cpu", "--device-budget", "64MiB", "--warmup", "1", "--repeat", "3"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *options], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {row["peer"]: row for row in rows}


def check(rows: dict[str, dict[str, Any]], exact: set[str]) -> None:
    """Each row has figures or, where its library is missing, says so; those in ``exact`` equal the plain run."""
    plain = rows.pop("plain")
    assert plain["seconds"] > 0
    for name, row in rows.items():
        assert {"library", "library_version", "torch_version", "cap", "date", "device_name"} <= set(row), name
        if "skipped" in row:
            assert row["library_version"] is None, row
            continue
        assert row["seconds"] > 0, row
        assert len(row["times"]) == 4
        assert row["plain_seconds"] == plain["seconds"]
        if name in exact:
            assert row["bits_equal"] is True, row


def test_inference_peers_give_the_plain_bits() -> None:
    names = ["double_buffer", "accelerate_cpu", "accelerate_disk", "diffusers_leaf", "diffusers_block"]
    rows = run("infer", "--tokens", "32", "--only", *names)
    assert set(rows) == {"plain", *names}
    check(rows, set(names))


def test_training_peers_give_the_plain_bits() -> None:
    names = ["save_on_cpu", "fsdp2"]
    rows = run("train", "--tokens", "32", "--batch", "2", "--no-recompute", "--deterministic", "--only", *names)
    assert set(rows) == {"plain", *names}
    check(rows, set(names))


def arguments(folder: Path, **changed: Any) -> argparse.Namespace:
    """What the command line of a small inference run parses to."""
    given = {
        "side": "infer", "shape": "tiny", "layers": 1, "tokens": 16, "batch": 1, "no_recompute": False, "device": "cpu",
        "folder": str(folder), "budget_bytes": 1 << 26, "deterministic": False, "warmup": 0, "repeat": 3,
        "plain": None, "no_plain": False,
    }  # fmt: skip
    return argparse.Namespace(**{**given, **changed})


def test_a_plain_run_is_kept_and_never_taken_for_another(bench: Any, tmp_path: Path, monkeypatch: Any) -> None:
    calls = []
    monkeypatch.setattr(bench.run, "run_child", lambda peer, args: calls.append(peer.name) or {"seconds": 1.0})
    file = tmp_path / "plain.json"
    for _ in range(2):
        assert bench.run.plain_result(arguments(tmp_path, plain=file)) == {"seconds": 1.0}
    assert calls == ["plain"]
    with pytest.raises(SystemExit, match="keeps another run"):
        bench.run.plain_result(arguments(tmp_path, plain=file, tokens=17))
    assert bench.run.plain_result(arguments(tmp_path, no_plain=True)) is None


def job(bench: Any, layers: int, folder: Path) -> Any:
    """A bfloat16 job of the tiny shape with that many layers."""
    shape = dataclasses.replace(bench.job.SHAPES["tiny"], layers=layers)
    return bench.job.Job(shape, 16, 2, False, "cpu", torch.bfloat16, 1 << 26, folder)


@pytest.mark.parametrize("layers", [3, 4])
def test_the_double_buffer_holds_two_parts_and_gives_the_plain_bits(bench: Any, tmp_path: Path, layers: int) -> None:
    work = job(bench, layers, tmp_path)
    plain, buffered = work.build().eval(), bench.double_buffer.prepare(work)
    with torch.inference_mode():
        for seed in range(3):  # an odd number of parts swaps the buffers' roles from one forward to the next
            tokens = torch.randint(0, 1024, (1, 16), generator=torch.Generator().manual_seed(seed))
            assert torch.equal(plain(tokens).view(torch.int16), buffered(tokens).view(torch.int16))
    state = buffered.double_buffer
    assert state.used == 3 * len(state.parts)
    assert state.loaded == state.used + 2
    where = {id(buffer.untyped_storage()) for buffer in state.buffers}
    assert len(where) == 2
    held = {p.untyped_storage().data_ptr() for p in buffered.parameters()}
    assert held <= {buffer.untyped_storage().data_ptr() for buffer in state.buffers}


def test_a_missing_library_and_a_failing_peer_cost_one_row(bench: Any, tmp_path: Path) -> None:
    args = arguments(tmp_path)
    peer = bench.registry.Peer("none", "infer", "double_buffer", "prepare", "no-such-package-of-tierpage")
    assert bench.run.child(peer, args) == {"skipped": "no-such-package-of-tierpage is not installed"}
    unimportable = bench.registry.Peer("none", "infer", "no_such_file", "prepare")
    assert "cannot be imported" in bench.run.child(unimportable, args)["skipped"]
    failing = bench.registry.Peer("none", "infer", "double_buffer", "DoubleBuffer")
    assert bench.run.child(failing, args)["error"].startswith("TypeError: ")
    row = bench.run.row_of(failing, {"error": "TypeError: x"}, None, args)
    assert (row["peer"], row["error"], row["plain_seconds"]) == ("none", "TypeError: x", None)


def test_every_peer_of_the_table_has_its_file_and_function(bench: Any) -> None:
    names = [peer.name for peer in bench.registry.PEERS]
    assert len(names) == len(set(names))
    for peer in bench.registry.PEERS:
        text = (BENCH / "peers" / f"{peer.module}.py").read_text()
        assert f"def {peer.function}(" in text
    with pytest.raises(ValueError, match="no infer peer is called fsdp2"):
        bench.registry.chosen("infer", ["fsdp2"])
