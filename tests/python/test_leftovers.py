"""What is run as in a notebook, twice, interrupted, in any order, leaves nothing behind in the process or on the disk."""

from __future__ import annotations

import ctypes
import gc
import signal
import threading
import time
import warnings
from collections.abc import Callable
from importlib.machinery import ExtensionFileLoader
from pathlib import Path

import pytest
import torch

import harness
import tierpage
from tierpage.loading import LoadWatch
from tierpage.offloaders import OffloadWatch


def leftovers(folder: Path) -> tuple[object, ...]:
    """What a session changes in the process."""
    threads = sorted(thread.name for thread in threading.enumerate())
    links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    open_files = sum(str(link.resolve()).startswith(str(folder)) for link in links)
    return (
        dict(torch.Tensor.__dict__), dict(torch.UntypedStorage.__dict__), torch._C.PyTorchFileWriter.write_record,
        torch.utils.dlpack.to_dlpack, ctypes.CDLL.__init__, ExtensionFileLoader.create_module,
        torch.library.Library.define, signal.getsignal(signal.SIGINT), threads, open_files, list(folder.iterdir()),
    )  # fmt: skip


def wait_until_left(folder: Path, before: tuple[object, ...]) -> None:
    gc.collect()
    for _ in range(100):
        if leftovers(folder) == before:
            return
        time.sleep(0.02)
    assert leftovers(folder) == before


def interrupted_use(parts: list[torch.Tensor]) -> None:
    for number in range(1_000_000):
        for part in parts:
            part.add_(0)
        if number == 20:
            signal.raise_signal(signal.SIGINT)


def test_cells_in_any_order_leave_nothing(device: str, tmp_path: Path) -> None:
    chosen = dict(harness.settings("clock", str(tmp_path)) or {})
    torch.ones(1, device=device)
    before = leftovers(tmp_path)
    shown: list[object] = []  # a notebook keeps what it has shown
    for _ in range(2):  # the cell is run twice
        pager = tierpage.enable(**chosen)
        shown += [pager, pager._repr_html_()]
    parts = [torch.full((65536,), float(number), device=device) for number in range(12)]

    with pytest.raises(KeyboardInterrupt):  # a cell is interrupted
        interrupted_use(parts)
    again = tierpage.enable(**chosen)
    shown += [again, tierpage.memory_summary()]
    assert [part[-1].item() for part in parts] == [float(number) for number in range(12)]
    with pytest.raises(tierpage.ConfigError, match="already enabled"):  # it is edited, and run again
        tierpage.enable(**chosen | {"device_budget": "3MiB"})
    del parts
    for _ in range(2):
        tierpage.disable()
    assert [pager.active, again.active] == [False, False]
    wait_until_left(tmp_path, before)


def test_an_interrupt_while_it_is_switched_on(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = dict(harness.settings("clock", str(tmp_path)) or {})
    before = leftovers(tmp_path)

    def interrupted(self: LoadWatch) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LoadWatch, "install", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tierpage.enable(**chosen)
    assert not tierpage.is_enabled()
    wait_until_left(tmp_path, before)
    with tierpage.enable(**chosen):
        assert torch.ones(65536, device=device).sum().item() == 65536
    wait_until_left(tmp_path, before)


def undone(folder: Path, before: tuple[object, ...], enable: Callable[[], object], error: type[BaseException]) -> None:
    """Switching on fails like this while it is nearly done: all of it is off then, and on when it is tried again."""
    with pytest.raises(error):
        enable()
    assert not tierpage.is_enabled()
    wait_until_left(folder, before)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        enable()
    assert [one.category for one in caught] in ([], [tierpage.TierpageWarning])
    assert tierpage.is_enabled()
    assert torch.ones(65536, device=harness.DEVICE).sum().item() == 65536
    tierpage.disable()
    wait_until_left(folder, before)


def test_a_warning_that_is_an_error_leaves_it_off(device: str, tmp_path: Path) -> None:
    """What the settings have to say."""
    paths = [tmp_path / name for name in "ab"]
    for path in paths:
        path.mkdir()
    chosen = dict(harness.settings("clock", str(tmp_path)) or {}) | {"nvme_path": paths}
    before = leftovers(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        undone(tmp_path, before, lambda: tierpage.enable(**chosen), tierpage.TierpageWarning)


def test_a_warning_about_a_model_from_before_leaves_it_off(device: str, tmp_path: Path) -> None:
    """What the models have to say that another library moves."""
    accelerate = pytest.importorskip("accelerate")
    chosen = dict(harness.settings("clock", str(tmp_path)) or {})
    model = accelerate.cpu_offload(torch.nn.Sequential(torch.nn.Linear(64, 64)), execution_device=device)
    before = leftovers(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        undone(tmp_path, before, lambda: tierpage.enable(**chosen), tierpage.TierpageWarning)
    del model


def test_an_interrupt_when_it_is_nearly_on(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = dict(harness.settings("clock", str(tmp_path)) or {})
    before = leftovers(tmp_path)
    standing = OffloadWatch.standing
    calls: list[object] = []

    def interrupted(self: OffloadWatch) -> list[str]:
        calls.append(self)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return standing(self)

    monkeypatch.setattr(OffloadWatch, "standing", interrupted)
    undone(tmp_path, before, lambda: tierpage.enable(**chosen), KeyboardInterrupt)
