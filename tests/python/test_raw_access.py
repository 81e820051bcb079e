"""Accesses that no operator announces: pointers, NumPy, DLPack, pickling, storages. All in paranoid mode: whatever is
read here had left the device just before."""

from __future__ import annotations

import copy
import ctypes
import gc
import io
import multiprocessing.reduction
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pytest
import torch

import harness
import tierpage

ROWS = 64


@pytest.fixture
def paged(options: dict[str, Any]) -> Iterator[str]:
    with tierpage.enable(**{**options, "paranoid": True}):
        yield harness.DEVICE
        assert harness.missed_accesses() == 0
        gc.collect()


@pytest.fixture
def host_only(device: str) -> None:
    if device != "cpu":
        pytest.skip("reads the memory of CPU tensors")


def counted(device: str) -> torch.Tensor:
    """0, 1, 2, ... in a paged tensor whose pages have left the device."""
    x = torch.arange(float(ROWS * ROWS), device=device).view(ROWS, ROWS)
    torch.ones(ROWS, device=device).add_(1)  # an operator on something else, after which nothing else is mapped
    placement = tierpage.where(x)
    assert placement.paged
    assert placement.device == 0
    return x


EXPECTED = numpy.arange(float(ROWS * ROWS), dtype=numpy.float32).reshape(ROWS, ROWS)

READS: dict[str, Callable[[torch.Tensor], Any]] = {
    "numpy": lambda x: x.numpy(),
    "asarray": lambda x: numpy.asarray(x),
    "array": lambda x: numpy.array(x),
    "buffer of a view": lambda x: numpy.concatenate([x[: ROWS // 2].numpy(), x[ROWS // 2 :].numpy()]),
    "strided view": lambda x: x.t().numpy().T,
    "tolist": lambda x: x.tolist(),
    "iteration": lambda x: [[float(v) for v in row] for row in x],
    "dlpack to numpy": lambda x: numpy.from_dlpack(x),
    "dlpack to torch": lambda x: torch.from_dlpack(x).clone().numpy(),
    "pointer": lambda x: numpy.ctypeslib.as_array(ctypes.cast(x.data_ptr(), ctypes.POINTER(ctypes.c_float)), (ROWS, ROWS)).copy(),
    "storage pointer": lambda x: numpy.ctypeslib.as_array(ctypes.cast(x.untyped_storage().data_ptr(), ctypes.POINTER(ctypes.c_float)), (ROWS, ROWS)).copy(),
    "storage list": lambda x: numpy.array(x.untyped_storage().tolist(), numpy.uint8).view(numpy.float32).reshape(ROWS, ROWS),
    "typed storage": lambda x: numpy.array(x.storage().tolist(), numpy.float32).reshape(ROWS, ROWS),
    "storage clone": lambda x: torch.empty(0).set_(x.untyped_storage().clone(), 0, (ROWS, ROWS)).numpy(),
    "bytes": lambda x: numpy.frombuffer(bytes(memoryview(x.numpy())), numpy.float32).reshape(ROWS, ROWS),
    "pickle": lambda x: pickle.loads(pickle.dumps(x)).numpy(),
    "pickle 5": lambda x: pickle.loads(pickle.dumps(x, protocol=5)).numpy(),
    "save": lambda x: loaded(x),
    "save, old format": lambda x: loaded(x, _use_new_zipfile_serialization=False),
    "deepcopy": lambda x: copy.deepcopy(x).numpy(),
    "item": lambda x: [[x[i, j].item() for j in range(ROWS)] for i in range(ROWS)],
    "to numpy through a tensor": lambda x: torch.tensor(x.numpy()).numpy(),
}  # fmt: skip


def loaded(x: torch.Tensor, **options: Any) -> Any:
    file = io.BytesIO()
    torch.save(x, file, **options)
    file.seek(0)
    return torch.load(file).numpy()


@pytest.mark.parametrize("name", READS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_reads(host_only: None, paged: str, name: str) -> None:
    x = counted(paged)
    assert numpy.array_equal(numpy.asarray(READS[name](x)), EXPECTED)
    assert bool((x == torch.from_numpy(EXPECTED)).all())


def test_text(paged: str) -> None:
    x = counted(paged)
    assert repr(x) == repr(torch.from_numpy(EXPECTED).to(paged))
    assert f"{x[0, 5]:.1f}" == "5.0"


def test_saved_from_any_device(paged: str, tmp_path: Any) -> None:
    x = counted(paged)
    torch.save({"x": x, "view": x[3]}, tmp_path / "x.pt")
    again = torch.load(tmp_path / "x.pt", map_location=paged)
    assert torch.equal(again["x"].cpu(), torch.from_numpy(EXPECTED))
    assert again["view"].untyped_storage()._cdata == again["x"].untyped_storage()._cdata
    if paged == "cpu":
        mapped = torch.load(tmp_path / "x.pt", mmap=True)["x"]
        assert not tierpage.where(mapped).paged
        assert torch.equal(mapped, x)


def test_written_through_numpy(host_only: None, paged: str) -> None:
    x = counted(paged)
    x.mul_(1)
    array = x.numpy()
    for step in range(3):
        array += 1
        array[:, 0] = step
        total = float((x * 1).sum())  # an operator between two writes: the page must not have been written back before
        expected = EXPECTED + step + 1
        expected[:, 0] = step
        assert total == float(torch.from_numpy(expected).sum())
    shared = numpy.from_dlpack(x)
    numpy.multiply(shared, 2, out=array)
    assert torch.equal(x.clone(), torch.from_numpy(expected * 2))


def test_array_outlives_its_tensor(host_only: None, paged: str) -> None:
    array = counted(paged).numpy()
    for _ in range(100):
        torch.ones(ROWS, ROWS).add_(1)
    assert numpy.array_equal(array, EXPECTED)


def test_storage_resized_and_shared(host_only: None, paged: str) -> None:
    x = counted(paged)
    x.untyped_storage().resize_(ROWS * ROWS * 8)
    assert torch.equal(x, torch.from_numpy(EXPECTED))
    x.untyped_storage().resize_(ROWS * ROWS * 4)
    y = torch.empty(0).set_(x.untyped_storage(), ROWS, (ROWS - 1, ROWS))
    assert torch.equal(y, torch.from_numpy(EXPECTED[1:]))
    x.untyped_storage().fill_(0)
    assert float(y.sum()) == 0
    x.copy_(torch.from_numpy(EXPECTED))
    other = torch.empty_like(x)
    other.untyped_storage().copy_(x.untyped_storage())
    assert torch.equal(other, x)
    other.untyped_storage()[0] = 7
    assert other.untyped_storage()[0] == 7
    shared = counted(paged).share_memory_()
    assert shared.is_shared()
    assert torch.equal(shared, torch.from_numpy(EXPECTED))


def test_file_roundtrip(host_only: None, paged: str, tmp_path: Any) -> None:
    x = counted(paged)
    x.numpy().tofile(tmp_path / "x")
    assert torch.equal(torch.from_numpy(numpy.fromfile(tmp_path / "x", numpy.float32)).view(ROWS, ROWS), x)
    again = torch.from_file(str(tmp_path / "x"), size=ROWS * ROWS)
    assert torch.equal(again.view(ROWS, ROWS), x)
    counted(paged).numpy().dump(tmp_path / "dump")
    assert numpy.array_equal(numpy.load(tmp_path / "dump", allow_pickle=True), EXPECTED)


def test_sent_to_another_process(host_only: None, paged: str) -> None:
    data = multiprocessing.reduction.ForkingPickler.dumps(counted(paged))
    assert torch.equal(pickle.loads(data), torch.from_numpy(EXPECTED))


def test_addresses_are_stable(paged: str) -> None:
    x = counted(paged)
    address = x.data_ptr()
    for _ in range(80):
        torch.ones(ROWS, device=paged).add_(1)
    assert tierpage.where(x).device == 0
    assert x.data_ptr() == address
    assert x[1].data_ptr() == address + ROWS * 4
    del x


def test_pointers_of_more_than_the_budget(options: dict[str, Any]) -> None:
    """Whoever looks at the pointers of a whole model (to find tied weights) does not fill the device with it."""
    with tierpage.enable(**options) as pager:
        each = pager.config.device_budget // 64
        tensors = [torch.full((each // 4,), float(i), device=harness.DEVICE) for i in range(200)]
        assert len({t.data_ptr() for t in tensors}) == 200
        assert len({t.untyped_storage().data_ptr() for t in tensors}) == 200
        sums = [float((t * 2).max()) for t in tensors]
        assert sums == [2.0 * i for i in range(200)]
        del tensors


def test_touched_memory_is_given_back(options: dict[str, Any], host_only: None) -> None:
    """What was read through raw pointers and freed holds nothing, also in a thread that runs no operator afterwards."""
    with tierpage.enable(**options) as pager:
        size = pager.config.device_budget // 8 // 4
        tensors = [torch.ones(size) for _ in range(6)]
        kept = [t.numpy() for t in tensors]
        assert tierpage.memory_stats()["live_bytes.current"] >= 6 * size * 4
        del tensors, kept
        gc.collect()
        assert tierpage.memory_stats()["pinned_bytes.current"] == 0
        again = [torch.empty(size) for _ in range(7)]
        assert all(tierpage.where(t).paged for t in again)
        del again


def test_missed_access_is_reported(options: dict[str, Any], host_only: None) -> None:
    """A pointer used long after it was taken: found in paranoid mode, and served."""
    with tierpage.enable(**{**options, "paranoid": True}):
        x = counted("cpu")
        raw = ctypes.cast(x.data_ptr(), ctypes.POINTER(ctypes.c_float))
        for _ in range(100):
            torch.ones(ROWS).mul_(2)
        assert tierpage.where(x).device == 0
        assert raw[5] == 5.0
        assert harness.missed_accesses() == 1
        with pytest.raises(tierpage.InternalError, match="announced by no operator"):
            torch.ones(ROWS).mul_(2)
        assert torch.equal(x, torch.from_numpy(EXPECTED))


@torch.library.custom_op("tierpage_raw::weigh", mutates_args=())
def weigh(weight: torch.Tensor) -> torch.Tensor:
    """Reads its argument through its pointer, as quantization libraries do."""
    weight.data_ptr()
    return weight.sum().reshape(1)


@torch.library.custom_op("tierpage_raw::lie", mutates_args=())
def lie(weight: torch.Tensor) -> torch.Tensor:
    """Writes what it says that it only reads."""
    ctypes.cast(weight.data_ptr(), ctypes.POINTER(ctypes.c_float))[1] += 1
    return weight[:1].clone()


def define_faked() -> None:
    """The same as weigh, declared by a schema without marks and a fake implementation."""
    torch.library.define("tierpage_raw::weigh_faked", "(Tensor weight) -> Tensor")
    torch.library.register_fake("tierpage_raw::weigh_faked", lambda weight: weight.new_empty(1))
    for device in ("CPU", "CUDA"):
        torch.library.impl("tierpage_raw::weigh_faked", device, weigh._init_fn)


define_faked()


@pytest.mark.parametrize("name", ["weigh", "weigh_faked"])
def test_a_pointer_taken_by_who_only_reads_writes_nothing_down(options: dict[str, Any], name: str) -> None:
    operator = getattr(torch.ops.tierpage_raw, name)
    budgets = {"device_budget": "8MiB", "host_budget": "64MiB"}
    with tierpage.enable(**{**options, **budgets}):
        weights = [torch.full((2**18,), float(i), device=harness.DEVICE) for i in range(16)]
        for lap in range(4):
            before = tierpage.memory_stats()
            for i, weight in enumerate(weights):
                assert operator(weight).item() == i * 2**18
            after = tierpage.memory_stats()
            if lap > 0:
                assert after["fetch_bytes.host_to_device"] - before["fetch_bytes.host_to_device"] >= 8 * 2**20
                assert after["writeback_bytes.device_to_host"] == before["writeback_bytes.device_to_host"]
        del weights, weight


def test_what_an_operator_writes_against_its_word_is_served(options: dict[str, Any], host_only: None) -> None:
    with tierpage.enable(**{**options, "device_budget": "8MiB", "host_budget": "64MiB"}):
        weights = [torch.full((2**18,), float(i)) for i in range(16)]
        for _ in range(3):
            for weight in weights:
                lie(weight)
        assert [weight[1].item() for weight in weights] == [i + 3.0 for i in range(16)]
        del weights, weight


def test_pin(paged: str) -> None:
    x, model = counted(paged), torch.nn.Linear(ROWS, ROWS).to(paged)
    other = counted(paged)
    with tierpage.pin(x, [model, {"nested": (other,)}]):
        for _ in range(5):
            torch.ones(ROWS, device=paged).add_(1)
        for tensor in (x, other, *model.parameters()):
            placement = tierpage.where(tensor)
            assert placement.device >= placement.bytes
            assert placement.pinned
        if paged == "cpu":
            address = x.data_ptr()
            for _ in range(100):
                torch.ones(ROWS).add_(1)
            raw = ctypes.cast(address, ctypes.POINTER(ctypes.c_float))
            raw[3] = 33.0
        else:
            x[0, 3] = 33.0
    torch.ones(ROWS, device=paged).add_(1)
    assert tierpage.where(x).device == 0
    assert float(x[0, 3]) == 33.0
    with pytest.raises(tierpage.ConfigError), tierpage.pin(3):
        pass


def test_composites_that_read_past_operators(options: dict[str, Any], host_only: None) -> None:
    """Composite kernels of the CPU that read their arguments themselves: the fault handler brings the pages."""
    signal = torch.randn(3, 4, 50)
    scores, targets = torch.randn(20, 4, 30).log_softmax(2), torch.randint(1, 30, (4, 10))
    lengths = torch.full((4,), 20), torch.full((4,), 10)
    expected = torch.max_pool1d(signal, 2), torch.nn.functional.ctc_loss(scores, targets, *lengths)
    with tierpage.enable(**{**options, "min_paged_bytes": 1}):
        paged = [tensor.clone() for tensor in (signal, scores, targets, *lengths)]
        tierpage.evict(paged)
        pooled = torch.max_pool1d(paged[0], 2)
        loss = torch.nn.functional.ctc_loss(*paged[1:])
        assert torch.equal(pooled, expected[0])
        assert torch.equal(loss, expected[1])
        del paged, pooled, loss


@pytest.mark.parametrize("change", ["before", "after", "off", "toggled", "again"])
def test_faulthandler_may_come_and_go(change: str, host_only: None) -> None:
    """A missed access is served whoever else handles SIGSEGV, and however late they came."""
    harness.run_child(f"""
import faulthandler, harness, torch, tierpage
harness.make_deterministic()
change = {change!r}
if change in ("before", "off", "toggled", "again"):
    faulthandler.enable()
expected = torch.max_pool1d(torch.arange(40_000.0).view(4, 10, 1000), 3)
tierpage.enable(**harness.settings("paranoid", ".") | {{"paranoid": False}})
x = torch.arange(40_000.0).view(4, 10, 1000)
for _ in range(3 if change == "again" else 1):
    if change in ("off", "toggled", "again"):
        faulthandler.disable()
    if change in ("after", "toggled", "again"):
        faulthandler.enable()
    tierpage.evict(x)
    with torch.no_grad():
        y = torch.max_pool1d(x, 3)
    assert torch.equal(y, expected)
    x = x + 0
tierpage.disable()
""")


def test_faulthandler_that_came_after_the_pages_went(host_only: None) -> None:
    harness.run_child("""
import faulthandler, harness, torch, tierpage
harness.make_deterministic()
expected = torch.max_pool1d(torch.arange(40_000.0).view(4, 10, 1000), 3)
tierpage.enable(**harness.settings("paranoid", ".") | {"paranoid": False})
x = torch.arange(40_000.0).view(4, 10, 1000)
tierpage.evict(x)
faulthandler.enable()
with torch.no_grad():
    assert torch.equal(torch.max_pool1d(x, 3), expected)
tierpage.disable()
""")
