"""``tierpage.save``: what the safetensors library reads is what the tensors hold, in bounded memory, and a file is whole
under its name or as it was."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from safetensors.torch import load_file

import checkpoints
import harness
import tierpage
from checkpoints import MIB, Model, same
from tierpage._checkpoint import saving, writer
from tierpage.session import current


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_module_and_a_mapping_with_tierpage_off(tmp_path: Path) -> None:
    model = Model()
    assert tierpage.save(model, tmp_path / "a.safetensors") == [tmp_path / "a.safetensors"]
    same(load_file(tmp_path / "a.safetensors"), dict(model.state_dict()))
    state = {"x": torch.arange(5), "nothing": torch.empty(0, 3), "scalar": torch.tensor(2.5)}
    assert tierpage.save(state, str(tmp_path), metadata={"who": "me"}) == [tmp_path / "model.safetensors"]
    same(load_file(tmp_path / "model.safetensors"), state)
    with safetensors.safe_open(tmp_path / "model.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt", "who": "me"}
    assert tierpage.save({}, tmp_path / "empty.safetensors")
    assert load_file(tmp_path / "empty.safetensors") == {}
    assert names(tmp_path) == ["a.safetensors", "empty.safetensors", "model.safetensors"]


@pytest.mark.parametrize("dtype", checkpoints.KNOWN, ids=str)
def test_every_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {f"t{i}": checkpoints.random_bits(shape, dtype, i) for i, shape in enumerate([(), (0,), (3,), (33, 65)])}
    tensors["odd"] = torch.ones(3, dtype=torch.uint8)
    tierpage.save(tensors, tmp_path / "x.safetensors")
    same(load_file(tmp_path / "x.safetensors"), tensors)


def test_views_are_written_in_logical_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "_PIECE_BYTES", 1000)
    base = torch.arange(24.0 * 1000).view(20, 30, 40)
    complex_base = torch.randn(30, 40, dtype=torch.complex64)
    tensors = {
        "whole": base,
        "transposed": base.permute(2, 0, 1),
        "rows": base[3:7],
        "columns": base[:, :, ::3],
        "expanded": torch.ones(1, 5).expand(300, 5),
        "wide": torch.arange(6000.0).view(2, 3000).t(),
        "conjugate": complex_base.conj(),
        "negative": complex_base.conj().imag,
        "scalar": base[3, 4, 5],
    }
    tierpage.save(tensors, tmp_path / "x.safetensors")
    same(load_file(tmp_path / "x.safetensors"), tensors)


def test_from_every_tier(device: str, tmp_path: Path) -> None:
    """Pages on the device, in RAM, on the disk, in the file that they came from, and half of each in one tensor."""
    torch.manual_seed(1)
    reference = {f"w{i}": torch.randn(300, 301) for i in range(12)}
    source = tmp_path / "source.safetensors"
    tierpage.save(reference, source)
    (tmp_path / "spill").mkdir()
    with tierpage.enable(**(harness.settings("clock", str(tmp_path / "spill")) or {})):
        model = torch.nn.Module()
        for name in reference:
            model.register_buffer(name, torch.empty(300, 301, device="meta"))
        tierpage.load(model, source)
        for name in list(reference)[::2]:
            model.get_buffer(name).mul_(2)
            reference[name].mul_(2)
        model.w3[150:160].zero_()  # one page of several
        reference["w3"][150:160].zero_()
        session = current()
        runs = session.runtime.sourced_runs(session.address_of(model.w3))
        assert len(runs) == (2 if device == "cpu" else 0)
        read = checkpoints.read_count()
        tierpage.save(model, tmp_path / "out.safetensors")
        assert checkpoints.read_count() - read < 2 * 65536 if device == "cpu" else True  # the rest went past the device
        same(load_file(tmp_path / "out.safetensors"), reference)
        same(dict(model.state_dict()), reference)


def test_what_ram_holds_is_copied_from_there(device: str, tmp_path: Path) -> None:
    settings = {**(harness.settings("paranoid", str(tmp_path)) or {}), "paranoid": False}
    with tierpage.enable(**settings):
        tensors = {f"w{i}": torch.full((300, 301), float(i), device=device) for i in range(8)}
        tensors["odd"] = tensors["w7"].view(-1)[1000:80_001]
        expected = {name: tensor.cpu().clone() for name, tensor in tensors.items()}
        tierpage.evict(tensors)
        assert tierpage.where(tensors["w3"]).device == 0
        before = tierpage.memory_stats()
        tierpage.save(tensors, tmp_path / "x.safetensors")
        after = tierpage.memory_stats()
        assert after["fetch_bytes.host_to_device"] == before["fetch_bytes.host_to_device"]
        assert tierpage.where(tensors["w3"]).device == 0
        same(load_file(tmp_path / "x.safetensors"), expected)
        same(tensors, expected)


def test_shards_have_the_usual_names_and_an_index(tmp_path: Path) -> None:
    model = Model()
    size = 211 * 211 * 4
    written = tierpage.save(model, tmp_path, max_shard_bytes=2 * size + 3000)
    assert [path.name for path in written] == [
        "model-00001-of-00004.safetensors", "model-00002-of-00004.safetensors", "model-00003-of-00004.safetensors",
        "model-00004-of-00004.safetensors", "model.safetensors.index.json",
    ]  # fmt: skip
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in model.state_dict().values())
    merged: dict[str, torch.Tensor] = {}
    for path in written[:-1]:
        part = load_file(path)
        assert sum(t.numel() * t.element_size() for t in part.values()) <= 2 * size + 3000
        assert all(index["weight_map"][name] == path.name for name in part)
        merged.update(part)
    same(merged, dict(model.state_dict()))
    # The same checkpoint in another layout: nothing of the old one is left to be found.
    tierpage.save(model, tmp_path, max_shard_bytes="1GB")
    assert names(tmp_path) == ["model.safetensors"]
    tierpage.save(model, tmp_path, max_shard_bytes=size * 4)
    assert names(tmp_path) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]


def test_an_index_of_somebody_else_leads_to_no_deletion(tmp_path: Path) -> None:
    (tmp_path / "keep").write_text("x")
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "keep", "b": "../x", "c": 3}})
    )
    tierpage.save({"a": torch.ones(2)}, tmp_path)
    assert names(tmp_path) == ["keep", "model.safetensors"]


REFUSED: dict[str, Callable[[], Any]] = {
    "number": lambda: {"a": 3},
    "name": lambda: {3: torch.ones(1)},
    "reserved name": lambda: {"__metadata__": torch.ones(1)},
    "meta": lambda: {"a": torch.empty(3, device="meta")},
    "sparse": lambda: {"a": torch.eye(3).to_sparse()},
    "complex128": lambda: {"a": torch.ones(3, dtype=torch.complex128)},
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_the_format_cannot_hold(what: str, tmp_path: Path) -> None:
    with pytest.raises(tierpage.CheckpointError, match="Remedy:"):
        tierpage.save(REFUSED[what](), tmp_path / "x.safetensors")
    assert names(tmp_path) == []


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="module or a mapping"):
        tierpage.save([torch.ones(1)], tmp_path / "x")  # type: ignore[arg-type]
    with pytest.raises(tierpage.CheckpointError, match="metadata"):
        tierpage.save({}, tmp_path / "x", metadata={"a": 1})  # type: ignore[dict-item]
    with pytest.raises(tierpage.ConfigError, match="max_shard_bytes"):
        tierpage.save({}, tmp_path / "x", max_shard_bytes="much")
    with pytest.raises(tierpage.StorageError, match="cannot save"):
        tierpage.save({}, tmp_path / "no" / "x")
    assert names(tmp_path) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("call", ["pwrite", "fsync", "replace", "posix_fallocate"])
def test_a_failure_leaves_everything_as_it_was(
    call: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.safetensors"
    tierpage.save({"a": torch.ones(3)}, path)
    before = path.read_bytes()

    def fail(*_: Any) -> Any:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(writer.os, call, fail)
    with pytest.raises(tierpage.StorageError) as error:
        tierpage.save({"a": torch.zeros(3 * MIB)}, path)
    monkeypatch.undo()
    assert isinstance(error.value, tierpage.StorageFullError) == (code == errno.ENOSPC)
    assert error.value.errno == code
    assert path.read_bytes() == before
    assert names(tmp_path) == ["x.safetensors"]


@pytest.mark.parametrize("direct", [True, False])
def test_short_writes_are_completed(direct: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_write, real_open, odd = os.pwrite, os.open, [0]

    def short(descriptor: int, content: memoryview, offset: int) -> int:
        odd[0] += 1
        return real_write(descriptor, content[: 8192 if odd[0] % 2 else len(content)], offset)

    def buffered(path: Any, flags: int, *mode: int) -> int:
        if flags & os.O_DIRECT and not direct:
            raise OSError(errno.EINVAL, "no")
        return real_open(path, flags, *mode)

    monkeypatch.setattr(writer, "_FLUSH_BYTES", 4 * MIB)
    monkeypatch.setattr(writer.os, "pwrite", short)
    monkeypatch.setattr(writer.os, "open", buffered)
    tensors = {"a": torch.randn(7 * MIB + 13), "b": torch.randn(5)}
    tierpage.save(tensors, tmp_path / "x.safetensors")
    monkeypatch.undo()
    same(load_file(tmp_path / "x.safetensors"), tensors)
    assert stat.S_IMODE((tmp_path / "x.safetensors").stat().st_mode) == 0o666 & ~umask()


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_file_too_large_for_the_process_is_an_error(tmp_path: Path) -> None:
    program = (
        "import sys, resource, torch, tierpage\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "try: tierpage.save({'a': torch.zeros(1 << 20)}, sys.argv[1])\n"
        "except tierpage.StorageFullError as error: print('refused', error.errno)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "x")], capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == ["refused", str(errno.EFBIG)]
    assert names(tmp_path) == []


PROGRAM = """
import os, resource, sys, torch, tierpage
folder, count = sys.argv[1], int(sys.argv[2])
tierpage.enable(folder, device="cpu", device_budget="16MiB", host_budget="24MiB", nvme_budget="600MiB",
                granule_bytes=65536, frame_bytes_max=2**20, staging_slots=4, staging_slot_bytes=2**20)
tensors = {f"w{i}": torch.full((1024, 1024), float(i)) for i in range(count)}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
tierpage.save(tensors, folder + "/x.safetensors")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_grow_with_the_model(device: str, tmp_path: Path) -> None:
    if device != "cpu":
        pytest.skip("counts the memory of the host device")
    growth = {}
    for count in (12, 100):
        run = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(tmp_path), str(count)], capture_output=True, text=True, check=True
        )
        growth[count] = int(run.stdout)
    assert growth[100] < growth[12] + 16 * 1024  # KiB
    assert growth[100] < 64 * 1024
    with safetensors.safe_open(tmp_path / "x.safetensors", "pt") as opened:
        assert all(torch.equal(opened.get_tensor(f"w{i}"), torch.full((1024, 1024), float(i))) for i in (0, 57, 99))


def test_the_content_begins_at_an_aligned_place(tmp_path: Path) -> None:
    tierpage.save({"b": torch.ones(3, dtype=torch.uint8), "a": torch.ones(3)}, tmp_path / "x")
    header_bytes = int.from_bytes((tmp_path / "x").read_bytes()[:8], "little")
    assert (8 + header_bytes) % 4096 == 0
    text = (tmp_path / "x").read_bytes()[8 : 8 + header_bytes].decode()
    assert re.search(r'"a".*"b"', text)  # the wider dtype first: every tensor is aligned to its size
