"""Raw pointers and views of more memory than fits: what was taken first is given up, and nothing fails or is lost."""

from __future__ import annotations

import copy
import ctypes
import gc
import io
import pickle
import shutil
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy
import pytest
import torch

import harness
import tierpage

COUNT = 48
BUDGETS = 4  # how often all tensors together exceed the device budget


@pytest.fixture
def paged(options: dict[str, Any]) -> Iterator[int]:
    """How many elements each of COUNT tensors has so that they do not fit."""
    with tierpage.enable(
        **{**options, **({"device_budget": "3MiB"} if harness.DEVICE == "cpu" else {"host_budget": "16GiB"})}
    ) as pager:
        yield pager.config.device_budget * BUDGETS // COUNT // 4
        gc.collect()


@pytest.fixture
def host_only(device: str) -> None:
    if device != "cpu":
        pytest.skip("reads the memory of CPU tensors")


def made(elements: int) -> list[torch.Tensor]:
    return [torch.full((elements,), float(i), device=harness.DEVICE) for i in range(COUNT)]


def whole(tensors: list[torch.Tensor]) -> bool:
    return all(bool((tensor == i).all()) for i, tensor in enumerate(tensors))


class Holder(torch.nn.Module):
    """A module of many buffers."""

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        super().__init__()
        for i, tensor in enumerate(tensors):
            self.register_buffer(f"b{i}", tensor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.parametrize("how", ["deepcopy", "save", "script", "pickle", "storage"])
def test_copies(paged: int, how: str) -> None:
    tensors = made(paged)
    if how == "deepcopy":
        copies = copy.deepcopy(tensors)
    elif how == "save":
        file = io.BytesIO()
        torch.save(tensors, file)
        file.seek(0)
        copies = torch.load(file, map_location=harness.DEVICE)
    elif how == "script":
        file, missed = io.BytesIO(), harness.missed_accesses()
        torch.jit.save(torch.jit.script(Holder(tensors)), file)
        assert harness.missed_accesses() == missed
        file.seek(0)
        copies = list(torch.jit.load(file, map_location=harness.DEVICE).buffers())
    elif how == "pickle":
        copies = pickle.loads(pickle.dumps(tensors))
    else:
        copies = [torch.empty(0, device=harness.DEVICE).set_(t.untyped_storage().clone(), 0, t.shape) for t in tensors]
    assert whole(copies)
    assert whole(tensors)


def test_pointers(paged: int) -> None:
    tensors = made(paged)
    assert len({tensor.data_ptr() for tensor in tensors}) == COUNT
    fit = tensors[: COUNT // BUDGETS // 2]
    for tensor in fit:  # of one launch
        tensor.data_ptr()
    assert all(tierpage.where(tensor).pinned for tensor in fit)
    assert whole(tensors)


def test_of_an_idle_thread(paged: int) -> None:
    tensors = made(paged)
    for tensor in tensors:
        tensor.data_ptr()
    seen: list[float] = []

    def work() -> None:
        large = torch.ones(paged * COUNT // BUDGETS * 3 // 4, device=harness.DEVICE)
        seen.extend([float(large.min()), float(large.max())])  # a sum of so many may be no float

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert seen == [1, 1]
    assert tierpage.memory_stats()["overflows.count"] == 0


def test_evict_knows_better(paged: int) -> None:
    tensor = torch.ones(paged, device=harness.DEVICE)
    tensor.data_ptr()
    assert tierpage.where(tensor).pinned
    assert tierpage.evict(tensor) > 0
    assert bool((tensor == 1).all())


def test_looks(host_only: None, paged: int) -> None:
    tensors = made(paged)
    for _ in range(2):
        assert [float(tensor.numpy().mean()) for tensor in tensors] == list(range(COUNT))


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.numpy(),
        numpy.asarray,
        numpy.from_dlpack,
        torch.from_dlpack,
        lambda x: torch.from_dlpack(torch.to_dlpack(x)),
    ],
)
def test_a_view_tells_of_its_end(host_only: None, options: dict[str, Any], view: Any) -> None:
    with tierpage.enable(**{**options, "paranoid": True}):
        tensor = torch.ones(20_000)
        views = [view(tensor), view(tensor)[1:]]
        assert not numpy.array(tensor, copy=True).base
        for _ in range(100):
            torch.ones(20_000).add_(1)
        assert tierpage.where(tensor).pinned, "it is in use"
        assert float(views[1][5]) == 1
        del views[0]
        torch.ones(20_000).add_(1)
        assert tierpage.where(tensor).pinned
        views.clear()
        torch.ones(20_000).add_(1)
        assert not tierpage.where(tensor).pinned
        assert tierpage.where(tensor).device == 0
        assert harness.missed_accesses() == 0
        del tensor


def test_views_that_stay(host_only: None, paged: int) -> None:
    """Arrays over all of it: read and written long after their pages went."""
    tensors = made(paged)
    arrays = [tensor.numpy() for tensor in tensors] + [numpy.from_dlpack(tensor) for tensor in tensors]
    assert all(bool((array == i % COUNT).all()) for i, array in enumerate(arrays))
    for round in range(1, 4):
        for array in arrays[:COUNT]:
            array += 1
        for i, tensor in enumerate(tensors):
            assert float(tensor.mean()) == i + round
            tensor.add_(0)
    assert all(bool((array == i + 3).all()) for i, array in enumerate(arrays[COUNT:]))


def test_writes_between_operators(host_only: None, paged: int) -> None:
    """A page that was written down ahead, or came up to be read, is clean; a write through an old view is not lost."""
    tensors = made(paged)
    arrays = [tensor.numpy() for tensor in tensors]
    for step in range(30):
        for tensor in tensors:
            tensor.sum()
        for i in range(step % 5, COUNT, 5):
            arrays[i][step] = -step - 1
    for i, tensor in enumerate(tensors):
        expected = torch.full((30,), float(i))
        steps = [step for step in range(30) if i % 5 == step % 5]
        expected[steps] = torch.tensor([-float(step) - 1 for step in steps])
        assert torch.equal(tensor[:30], expected), i


def test_raw_reads_in_threads(host_only: None, paged: int) -> None:
    """Several threads that read the same memory while it comes and goes see all of it or wait."""
    tensors = made(paged)
    arrays = [tensor.numpy() for tensor in tensors]
    wrong: list[tuple[int, float]] = []

    def read() -> None:
        for _ in range(3):
            for i, array in enumerate(arrays):
                if not bool((array == i).all()):
                    wrong.append((i, float(array.mean())))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert wrong == []


@pytest.mark.parametrize("parts", [1, 5])
def test_safetensors(host_only: None, paged: int, parts: int, tmp_path: Any) -> None:
    """The library takes all pointers, then hands them to the kernel."""
    safetensors = pytest.importorskip("safetensors.torch")
    state = {
        f"t{i:03}.{part}": tensor.view(-1)[part::parts].clone()
        for i, tensor in enumerate(made(paged))
        for part in range(parts)
    }
    state |= {"half": torch.ones(paged, dtype=torch.bfloat16), "flags": torch.ones(paged, dtype=torch.bool)}
    metadata = {"format": "pt"}
    safetensors.save_file(state, tmp_path / "paged.safetensors", metadata=metadata)
    assert safetensors.save(state, metadata=metadata) == (tmp_path / "paged.safetensors").read_bytes()
    plain = {name: torch.from_numpy(tensor.float().numpy().copy()).to(tensor.dtype) for name, tensor in state.items()}
    tierpage.disable()
    safetensors.save_file(plain, tmp_path / "plain.safetensors", metadata=metadata)
    assert (tmp_path / "plain.safetensors").read_bytes() == (tmp_path / "paged.safetensors").read_bytes()
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_safetensors_that_cannot_write(host_only: None, paged: int, tmp_path: Any) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    with pytest.raises(OSError, match="No such file"):
        safetensors.save_file({"x": torch.ones(paged)}, tmp_path / "none" / "x.safetensors")


def test_pointers_kept_beyond_any_guess(host_only: None, paged: int) -> None:
    tensors = made(paged)
    pointers = [ctypes.cast(tensor.data_ptr(), ctypes.POINTER(ctypes.c_float)) for tensor in tensors]
    for i, pointer in enumerate(pointers):
        assert pointer[paged - 1] == i
        pointer[paged - 1] = -1.0
    assert all(float(tensor[-1]) == -1 for tensor in tensors)


@pytest.mark.skipif(shutil.which("g++") is None or sys.platform != "linux", reason="inductor needs a compiler")
def test_compiled_kernels(host_only: None) -> None:
    """inductor's launchers take the pointers of their arguments, and start."""
    harness.run_child("""
import torch, tierpage
torch.set_num_threads(1)
def run(paged):
    torch._dynamo.reset()
    @torch.compile
    def kernel(a, b, c, d, out):
        out.copy_((a + b) * 0.5 + (c - d).sin())
    pool = [torch.full((32 * 1024,), float(i) / 64) for i in range(64)]
    for k in range(300):
        at = k % 16
        kernel(*pool[at * 4 % 64:][:4], pool[(at * 7 + 3) % 64])
    return [float(p.double().sum()) for p in pool]
plain = run(False)
with tierpage.enable(device="cpu", device_budget="4MiB", host_budget="64MiB", min_paged_bytes="64KiB"):
    assert run(True) == plain
""")
