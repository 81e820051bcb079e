"""``tierpage.load``: the bits of load_state_dict, nothing read before its use, nothing written to the file, and what was
loaded is the same as any other weight."""

from __future__ import annotations

import gc
import io
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import checkpoints
import harness
import tierpage
from checkpoints import Model, read_count, same
from tierpage._checkpoint import loading


@pytest.fixture
def reference() -> Model:
    torch.manual_seed(3)
    return Model()


@pytest.fixture
def file(reference: Model, tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(reference.state_dict(), path)
    return path


@pytest.fixture(params=["two tiers", "three tiers", "paranoid"])
def paged(request: pytest.FixtureRequest, tmp_path: Path, file: Path) -> Iterator[str]:
    name = {"two tiers": "prefetch", "three tiers": "clock", "paranoid": "paranoid"}[request.param]
    (tmp_path / "spill").mkdir()
    with tierpage.enable(**(harness.settings(name, str(tmp_path / "spill")) or {})):
        yield harness.DEVICE


@pytest.fixture
def switch_on(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Enables: far less of every tier than the model takes; a spill file for what is written."""
    (tmp_path / "spill").mkdir(exist_ok=True)

    def on(**more: Any) -> str:
        tierpage.enable(**{**(harness.settings("clock", str(tmp_path / "spill")) or {}), **more})
        return harness.DEVICE

    yield on
    gc.collect()
    tierpage.disable()


@pytest.fixture
def small(switch_on: Callable[..., str], file: Path) -> str:
    return switch_on()


def fingerprint(path: Path) -> tuple[Any, ...]:
    info = path.stat()
    return info.st_mode, info.st_mtime_ns, info.st_size, info.st_ino, path.read_bytes()


def meta() -> Model:
    with torch.device("meta"):
        return Model()


def test_bits_are_those_of_load_state_dict(paged: str, file: Path, reference: Model) -> None:
    before = fingerprint(file)
    model = meta()
    result = tierpage.load(model, file)
    assert result.missing_keys == []
    assert result.unexpected_keys == []
    x = torch.randn(8, 211)
    model.eval()
    reference.eval()
    with torch.no_grad():
        assert torch.equal(model(x.to(paged)).cpu(), reference(x))
    same(dict(model.state_dict()), dict(reference.state_dict()))
    assert fingerprint(file) == before


def test_nothing_is_read_before_it_is_used(small: str, file: Path) -> None:
    model = meta()
    tierpage.load(model, file)
    live = tierpage.memory_stats()["live_bytes.current"]
    assert read_count() == 0
    assert live > 6 * 211 * 211 * 4
    where = tierpage.where(model.layers[2].weight)
    assert where.paged
    assert where.device == where.host == 0
    assert where.checkpoint == where.nvme >= where.bytes
    assert "in its checkpoint" in str(where)
    with torch.no_grad():
        model.layers[2](torch.zeros(1, 211, device=small))
    assert read_count() == 211 * 211 * 4 + 211 * 4
    del model
    assert tierpage.memory_stats()["resident_bytes.nvme.current"] == 0


def test_frozen_weights_are_never_written(tmp_path: Path, device: str) -> None:
    torch.manual_seed(1)
    reference = Model(layers=24, width=384)
    path = tmp_path / "large.safetensors"
    safetensors.torch.save_file(reference.state_dict(), path)
    (tmp_path / "spill").mkdir()
    settings = {**(harness.settings("clock", str(tmp_path / "spill")) or {}), "host_budget": "1MiB"}
    if device != "cpu":
        pytest.skip("the sizes are those of the host device")
    settings["device_budget"] = "2MiB"
    with tierpage.enable(**settings):
        with torch.device("meta"):
            model = Model(layers=24, width=384)
        tierpage.load(model, path)
        model.eval()
        reference.eval()
        x = torch.randn(4, 384)
        with torch.no_grad():
            for _ in range(3):
                assert torch.equal(model(x), reference(x))
        stats = tierpage.memory_stats()
        assert stats["fetch_bytes.source"] > path.stat().st_size  # larger than both budgets: most is read each time
        assert stats["writeback_bytes.device_to_nvme"] == stats["writeback_bytes.host_to_nvme"] == 0
        assert stats["drop_bytes.device"] > 0


def steps(model: torch.nn.Module, device: str, count: int = 3) -> list[torch.Tensor]:
    torch.manual_seed(11)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, foreach=False)
    losses = []
    for _ in range(count):
        x = torch.randn(8, 211).to(device)
        loss = model(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach().cpu())
    return losses


def test_trained_and_saved(paged: str, file: Path, reference: Model, tmp_path: Path) -> None:
    before = fingerprint(file)
    model = meta()
    for layer in model.layers[::2]:
        assert not layer.weight.requires_grad
    tierpage.load(model, file)
    model.train()
    reference.train()
    if paged == "cpu":
        losses = zip(steps(model, paged), steps(reference, "cpu"), strict=True)
        assert all(torch.equal(a, b) for a, b in losses)
    else:
        steps(model, paged)
    assert fingerprint(file) == before
    written = tmp_path / "trained.safetensors"
    tierpage.save(model, written)
    loaded = safetensors.torch.load_file(written)
    same(loaded, dict(model.state_dict()))
    if paged == "cpu":
        same(loaded, dict(reference.state_dict()))


def test_torch_save_keeps_working(switch_on: Callable[..., str], file: Path, reference: Model) -> None:
    switch_on(device_budget="4MiB" if harness.DEVICE == "cpu" else "640MiB")  # torch.save looks at raw pointers
    model = meta()
    tierpage.load(model, file)
    stream = io.BytesIO()
    torch.save(model.state_dict(), stream)
    stream.seek(0)
    same(torch.load(stream, map_location="cpu"), dict(reference.state_dict()))


@pytest.mark.parametrize("dtype", checkpoints.KNOWN, ids=str)
def test_every_dtype_and_shape(switch_on: Callable[..., str], dtype: torch.dtype, tmp_path: Path) -> None:
    shapes = [(), (1,), (0,), (3, 0, 2), (7,), (33, 65), (2, 3, 5, 7), (101, 211)]
    tensors = {f"t{i}": checkpoints.random_bits(shape, dtype, i) for i, shape in enumerate(shapes)}
    # One byte in front moves everything off any alignment.
    tensors["a"] = torch.ones(1, dtype=torch.uint8)
    path = tmp_path / "dtypes.safetensors"
    safetensors.torch.save_file(tensors, path)
    switch_on()
    model = torch.nn.Module()
    for name, tensor in tensors.items():
        model.register_buffer(name, torch.empty_like(tensor))
    tierpage.load(model, path)
    same(dict(model.state_dict()), tensors)
    for name, tensor in tensors.items():
        assert model.get_buffer(name).stride() == tensor.stride()
    out = tmp_path / "again.safetensors"
    tierpage.save(model, out)
    same(safetensors.torch.load_file(out), tensors)


def test_missing_unexpected_and_wrong_shapes_are_torchs(small: str, file: Path, reference: Model) -> None:
    wrong = {"missing": Model(layers=7), "unexpected": Model(layers=5), "shape": Model(width=13)}
    for name, model in wrong.items():
        plain = type(model)(layers=len(model.layers), width=model.layers[0].in_features)
        with pytest.raises(RuntimeError) as ours:
            tierpage.load(model, file)
        with pytest.raises(RuntimeError) as torchs:
            plain.load_state_dict(reference.state_dict(), assign=True)
        words = [sorted(re.findall(r"[\w.]*\w", str(error.value))) for error in (ours, torchs)]
        assert words[0] == words[1], name
    result = tierpage.load(Model(layers=7), file, strict=False)
    assert sorted(result.missing_keys) == ["layers.6.bias", "layers.6.weight"]
    assert tierpage.load(Model(layers=5), file, False).unexpected_keys


def test_assigned_parameters_keep_requires_grad_and_are_on_the_device(small: str, file: Path) -> None:
    model = Model()
    old = model.layers[1].weight
    tierpage.load(model, file)
    assert model.layers[1].weight is not old
    assert isinstance(model.layers[1].weight, torch.nn.Parameter)
    assert model.layers[1].weight.is_leaf
    assert model.layers[1].weight.device.type == small
    assert [p.requires_grad for p in model.layers.parameters()] == [False, False, True, True] * 3
    assert not model.layers[1].weight._is_view()


def test_modes_in_which_torch_fills_new_memory(small: str, file: Path, reference: Model) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        model = meta()
        tierpage.load(model, file)
        assert read_count() == 0
    finally:
        torch.use_deterministic_algorithms(False)
    same(dict(model.state_dict()), dict(reference.state_dict()))


def test_explicit_scope_and_inference_mode(switch_on: Callable[..., str], file: Path, reference: Model) -> None:
    switch_on(scope="explicit")
    model = meta()
    with torch.inference_mode():
        tierpage.load(model, file)
    assert tierpage.where(model.layers[0].weight).paged
    same(dict(model.state_dict()), dict(reference.state_dict()))


def test_two_threads_load_at_once(small: str, file: Path, reference: Model) -> None:
    models = [meta() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda model: tierpage.load(model, file), models))
    for model in models:
        same(dict(model.state_dict()), dict(reference.state_dict()))


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(500, 64)
        self.head = torch.nn.Linear(64, 500, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.embedding(tokens))


@pytest.mark.parametrize("names", [["embedding.weight"], ["head.weight"], ["embedding.weight", "head.weight"]])
def test_tied_weights_stay_tied(switch_on: Callable[..., str], names: list[str], tmp_path: Path) -> None:
    torch.manual_seed(5)
    plain = Tied()
    weight = plain.embedding.weight.detach()
    path = tmp_path / "tied.safetensors"
    safetensors.torch.save_file({name: weight.clone() for name in names}, path)
    small = switch_on()
    with torch.device("meta"):
        model = Tied()
    tierpage.load(model, path)
    assert model.head.weight is model.embedding.weight
    tokens = torch.arange(50)
    model(tokens.to(small)).square().sum().backward()
    plain(tokens).square().sum().backward()
    if small == "cpu":
        assert torch.equal(model.head.weight.grad, plain.head.weight.grad)
    out = tmp_path / "out.safetensors"
    tierpage.save(model, out)
    assert list(safetensors.torch.load_file(out)) == ["embedding.weight"]
    again = Tied()
    missing, unexpected = safetensors.torch.load_model(again, out)
    assert not missing
    assert not unexpected
    assert torch.equal(again.head.weight, weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, "model"])
def test_dtype_conversion(
    switch_on: Callable[..., str], dtype: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tierpage._checkpoint.tensors._PIECE_BYTES", 64 * 1024)
    torch.manual_seed(2)
    reference = Model(layers=2, width=320)
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(reference.state_dict(), path)
    switch_on()
    target = torch.float16 if dtype == "model" else dtype
    with torch.device("meta"):
        model = Model(layers=2, width=320, dtype=target)
    tierpage.load(model, path, dtype=dtype)
    expected = {k: v.to(target) if v.is_floating_point() else v for k, v in reference.state_dict().items()}
    same(dict(model.state_dict()), expected)
    assert read_count() == 0  # nothing is left to be read from the file


@pytest.mark.parametrize("dtype", ["bfloat16", torch.int8, 3])
def test_a_dtype_that_is_none_is_refused(small: str, file: Path, dtype: Any) -> None:
    with pytest.raises(tierpage.ConfigError, match="dtype="):
        tierpage.load(meta(), file, dtype=dtype)


def test_what_stays_on_the_meta_device_is_said(small: str, file: Path) -> None:
    model = meta()
    model.register_buffer("angles", torch.empty(4, device="meta"), persistent=False)
    with pytest.warns(tierpage.TierpageWarning, match="1 tensors.*angles"):
        tierpage.load(model, file)


def test_errors_before_anything_is_read(small: str, file: Path, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="module"):
        tierpage.load({"a": 1}, file)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        tierpage.load(meta(), tmp_path / "none.safetensors")
    with pytest.raises(tierpage.CheckpointError, match=r"holds no model\.safetensors"):
        tierpage.load(meta(), tmp_path / "spill")
    with pytest.raises(tierpage.CheckpointError, match="no checkpoint file was given"):
        tierpage.load(meta(), [])


def test_while_off(file: Path) -> None:
    with pytest.raises(tierpage.TierpageError, match="not enabled"):
        tierpage.load(meta(), file)


# --- several files -------------------------------------------------------------------------------------------------


def sharded(folder: Path, reference: Model, count: int = 3) -> Path:
    """As transformers writes it."""
    folder.mkdir(exist_ok=True)
    state = reference.state_dict()
    names = list(state)
    weight_map = {}
    for i in range(count):
        file = f"model-{i + 1:05d}-of-{count:05d}.safetensors"
        part = {name: state[name] for name in names[i::count]}
        safetensors.torch.save_file(part, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def test_shards_by_index_folder_and_list(small: str, reference: Model, tmp_path: Path) -> None:
    folder = sharded(tmp_path / "model", reference)
    ways: list[Any] = [
        folder,
        str(folder),
        folder / "model.safetensors.index.json",
        sorted(folder.glob("*.safetensors")),
    ]
    for way in ways:
        model = meta()
        tierpage.load(model, way)
        same(dict(model.state_dict()), dict(reference.state_dict()))


def test_a_snapshot_of_links_into_blobs(small: str, reference: Model, tmp_path: Path) -> None:
    folder = sharded(tmp_path / "plain", reference)
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for i, path in enumerate(sorted(folder.iterdir())):
        shutil.copy(path, blobs / f"{i:064x}")
        (snapshot / path.name).symlink_to(Path("../../blobs") / f"{i:064x}")
    model = meta()
    tierpage.load(model, snapshot)
    same(dict(model.state_dict()), dict(reference.state_dict()))


# --- the file changes ----------------------------------------------------------------------------------------------


def use(model: Model, device: str) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(torch.ones(2, 211, device=device)).cpu()


@pytest.mark.parametrize("change", ["write", "truncate", "grow", "touch"])
def test_a_changed_file_raises(small: str, file: Path, change: str) -> None:
    model = meta()
    tierpage.load(model, file)
    if change == "write":
        with open(file, "r+b") as stream:
            stream.seek(-100, os.SEEK_END)
            stream.write(b"x")
    elif change == "touch":
        os.utime(file)
    else:
        os.truncate(file, file.stat().st_size + (1 if change == "grow" else -1))
    with pytest.raises(tierpage.StorageError, match="changed while tensors had their content in it") as error:
        use(model, small)
    assert str(file) in str(error.value)
    assert "Remedy:" in str(error.value)


@pytest.mark.parametrize("dtype", [None, torch.float64], ids=["kept", "converted"])
@pytest.mark.parametrize("cut", [0, 100, 5000])
def test_a_file_that_changes_behind_its_header(
    small: str, file: Path, cut: int, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody writes it anew in place just when it is loaded: what is missing at its end must not become zeros."""
    real = loading.open_checkpoint

    def opened(path: Any) -> Any:
        files = real(path)
        time.sleep(0.05)
        os.truncate(file, file.stat().st_size - cut)
        return files

    monkeypatch.setattr(loading, "open_checkpoint", opened)
    with pytest.raises((tierpage.StorageError, tierpage.CheckpointError), match=re.escape(str(file))):
        tierpage.load(meta(), file, dtype=dtype)


def test_a_replaced_or_deleted_file_stays_what_it_was(small: str, file: Path, reference: Model, tmp_path: Path) -> None:
    model = meta()
    tierpage.load(model, file)
    other = tmp_path / "other"
    other.write_bytes(b"something else")
    os.replace(other, file)
    assert torch.equal(use(model, small), use(reference, "cpu")) or small != "cpu"
    file.unlink()
    same(dict(model.state_dict()), dict(reference.state_dict()))


def test_a_changed_file_ends_a_save_and_nothing_is_left(small: str, file: Path, tmp_path: Path) -> None:
    model = meta()
    tierpage.load(model, file)
    os.utime(file)  # the threads that write are the ones that read it
    there = sorted(tmp_path.rglob("*"))
    with pytest.raises(tierpage.StorageError, match="changed while tensors had their content in it"):
        tierpage.save(model, tmp_path / "saved.safetensors")
    assert sorted(tmp_path.rglob("*")) == there


def test_saved_over_the_file_that_it_came_from(small: str, file: Path) -> None:
    model = meta()
    tierpage.load(model, file)
    steps(model.train(), small, 1)
    expected = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
    tierpage.save(model, file)
    same(safetensors.torch.load_file(file), expected)
    same(dict(model.state_dict()), expected)
    tierpage.load(model, file)
    same(dict(model.state_dict()), expected)


def test_files_are_closed_with_their_last_tensor(small: str, file: Path) -> None:
    def descriptors() -> int:
        links = [os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
        return sum(os.path.exists(link) and os.path.samefile(link, file) for link in links)

    model = meta()
    tierpage.load(model, file)
    assert descriptors() == 1
    del model
    gc.collect()
    for _ in range(100):
        if descriptors() == 0:
            break
        time.sleep(0.05)
    assert descriptors() == 0


def test_disable_brings_everything_up(device: str, file: Path, reference: Model, options: dict[str, Any]) -> None:
    model = meta()
    pager = tierpage.enable(**options)
    tierpage.load(model, file)
    pager.disable()
    file.unlink()
    same(dict(model.state_dict()), dict(reference.state_dict()))
