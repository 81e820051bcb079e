"""Programs with worker processes around a paged model, and what the workers run; see test_processes.py."""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as processes
from torch.nn import functional as F

import harness
import tierpage

CUDA = harness.DEVICE != "cpu"
WIDTH = 2048 if CUDA else 192
BUDGET_NUMBERS = (640 if CUDA else 1) * harness.MIB // 4  # what the device holds


def full_settings(folder: str) -> dict[str, Any]:
    """With RAM enough for a tensor that is larger than the device."""
    return {**(harness.settings("clock", folder) or {}), "host_budget": "4GiB" if CUDA else "16MiB"}


class Rows(torch.utils.data.Dataset):
    """Rows of random numbers; the worker that makes row `fatal` dies of it."""

    def __init__(self, fatal: int = -1) -> None:
        self.fatal = fatal

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.randn(WIDTH, generator=torch.Generator().manual_seed(index))


def loader(start: str, fatal: int = -1) -> torch.utils.data.DataLoader:
    workers = 2 if start == "fork" else 1  # which imports torch first
    return torch.utils.data.DataLoader(Rows(fatal), batch_size=4, num_workers=workers, multiprocessing_context=start)


def train(batches: Callable[[], Any], epochs: int, after: Callable[[int], None] = lambda epoch: None) -> list[Any]:
    """The parameters after so many epochs, each of which asks for the batches anew."""
    harness.seed_everything()
    model = torch.nn.Sequential(*[torch.nn.Linear(WIDTH, WIDTH) for _ in range(5)]).to(harness.DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for epoch in range(epochs):
        for batch in batches():
            x = batch.to(harness.DEVICE)
            F.mse_loss(model(x), x).backward()
            optimizer.step()
            optimizer.zero_grad()
        after(epoch)
    return [parameter.detach().cpu().clone() for parameter in model.parameters()]


def leftovers() -> dict[str, int]:
    """What workers may leave in the process that started them. Semaphores and shared tensors are files in /dev/shm."""
    gc.collect()
    mine = [entry for entry in os.listdir("/dev/shm") if entry.startswith((f"torch_{os.getpid()}_", "sem.mp-"))]
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return {
        "files": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "children": len(children),
        "shared": len(mine),
        "live": int(tierpage.memory_stats()["live_bytes.current"]),
    }


def grown(before: dict[str, int]) -> dict[str, tuple[int, int]]:
    """What there is more of than before, once there is none, or after some seconds: a worker's end takes a moment.

    There may be less: a worker or one of its semaphores may have been on its way out when `before` was counted.
    """
    until = time.monotonic() + 20
    while True:
        now = leftovers()
        more = {name: (before[name], count) for name, count in now.items() if count > before[name]}
        if not more or time.monotonic() > until:
            return more
        time.sleep(0.05)


def epochs_with_workers(folder: str, start: str, epochs: int) -> None:
    """Workers come and go with each epoch; the model is that of a run without workers and without tierpage."""
    harness.make_deterministic()
    expected = train(lambda: torch.utils.data.DataLoader(Rows(), batch_size=4), epochs)
    tierpage.enable(**(harness.settings("clock", folder) or {}))
    first: dict[str, int] = {}

    def after(epoch: int) -> None:
        if epoch == 0:
            first.update(leftovers())
        elif epoch == epochs - 1:
            more = grown(first)
            assert not more, more

    found = train(lambda: loader(start), epochs, after)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert tierpage.memory_stats()["nvme_write_bytes.total"] > 0
    assert os.listdir(folder) == []


def a_worker_is_killed(folder: str) -> None:
    """As without tierpage: an error in the loop, and the next epoch may have other workers."""
    harness.make_deterministic()
    tierpage.enable(**(harness.settings("clock", folder) or {}))
    expected = train(lambda: loader("fork"), 2)
    before = leftovers()
    for _ in range(3):
        with pytest.raises(RuntimeError, match=r"is killed by signal|exited unexpectedly"):
            train(lambda: loader("fork", fatal=0), 1)  # before it has sent anything: torch says other things then
    found = train(lambda: loader("fork"), 2)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    del found
    more = grown(before)
    assert not more, more


def doubled(x: torch.Tensor) -> torch.Tensor:
    return x.double().mul_(2)


def pools(folder: str, start: str, rounds: int) -> None:
    """Pools of workers, to whom paged tensors are sent and who send some back."""
    harness.make_deterministic()
    tierpage.enable(**full_settings(folder))
    kept = [torch.full((WIDTH * WIDTH,), float(i), device=harness.DEVICE) for i in range(40)]

    def one(number: int) -> None:
        with processes.get_context(start).Pool(2 if start == "fork" else 1) as pool:
            made = [torch.full((5000 + i,), float(i + number)) for i in range(6)]
            tierpage.evict(made[:3])
            found = pool.map(doubled, made)
            assert [float(x.sum()) for x in found] == [2.0 * (5000 + i) * (i + number) for i in range(6)]
            pool.close()
            pool.join()
        for tensor in kept:
            tensor.add_(1)

    one(0)
    first = leftovers()
    for number in range(1, rounds):
        one(number)
    assert [float(tensor[-1]) for tensor in kept] == [float(i + rounds) for i in range(40)]
    more = grown(first)
    assert not more, more


def other_process(folder: str, received: Any, sent: Any) -> None:
    """Adds one to what comes, and sends its sum; then sends a paged tensor of its own until it may end."""
    harness.make_deterministic()
    while (tensor := received.get()) is not None:
        sent.put(float(tensor.double().sum()))
        tensor.add_(1)
        del tensor
        sent.put("added")
    tierpage.enable(**full_settings(folder))
    mine = [torch.arange(5000.0) + i for i in range(100)]
    assert tierpage.where(mine[0]).paged
    for tensor in mine[:8]:
        sent.put(tensor)
    received.get()


def send_all(to: Any, back: Any) -> None:
    sizes = (100, 5000, 1 << 16, 2 * BUDGET_NUMBERS)  # the last one is larger than the device
    tensors = [torch.arange(float(size)) for size in sizes]
    tensors += [torch.full((4096, 2), 5.0)[100:200], torch.nn.Parameter(torch.full((4096,), 2.0)).detach()]
    expected = [tensor.clone() for tensor in tensors]
    tierpage.evict(tensors)
    for tensor, value in zip(tensors, expected, strict=True):
        assert tierpage.where(tensor).paged
        to.put(tensor)
        assert back.get(timeout=60) == float(value.double().sum())
        assert back.get(timeout=60) == "added"
        assert torch.equal(tensor, value + 1), "the other process has written to the same memory"
        assert not tierpage.where(tensor).paged


def sent_through_queues(folder: str) -> None:
    """Paged CPU tensors arrive with their bits and are shared from then on, as without tierpage."""
    harness.make_deterministic()
    tierpage.enable(**full_settings(folder))
    context = processes.get_context("spawn")
    to, back = context.Queue(), context.Queue()
    child = context.Process(target=other_process, args=(folder, to, back), daemon=True)
    child.start()
    ballast = [torch.full((1 << 14,), 3.0) for _ in range(40)]
    for strategy in ("file_descriptor", "file_system"):
        processes.set_sharing_strategy(strategy)
        send_all(to, back)
    to.put(None)
    for number in range(8):
        assert torch.equal(back.get(timeout=60), torch.arange(5000.0) + number)
    to.put(None)
    child.join()
    assert child.exitcode == 0
    assert all(bool((tensor == 3).all()) for tensor in ballast)
