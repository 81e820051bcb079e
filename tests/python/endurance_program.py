"""A program that does a little of everything for many steps, and notes what it uses; see test_endurance.py."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

import harness
import tierpage

CUDA = harness.DEVICE != "cpu"
WIDTH = 1024 if CUDA else 96
UNIT = 1 << 20 if CUDA else 1 << 12  # numbers of the smallest tensor in the pool
KEPT = 24
BUDGETS = ("512MiB", "640MiB") if CUDA else ("1MiB", "2MiB")


def usage(folder: Path) -> dict[str, int]:
    """What the process uses at this moment."""
    gc.collect()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    spill = 0
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(link).startswith(str(folder)):
                spill += os.stat(link).st_blocks * 512
    return {
        "resident": int(status["VmRSS"].split()[0]) << 10,
        "addresses": int(status["VmSize"].split()[0]) << 10,
        "mappings": Path("/proc/self/maps").read_text().count("\n"),
        "files": len(os.listdir("/proc/self/fd")),
        "threads": int(status["Threads"]),
        "spill": spill,
        "objects": len(gc.get_objects()),
        "live": int(tierpage.memory_stats().get("live_bytes.current", 0)),
    }


class Endurance:
    """One step trains a little and does the chores that are due. All that is kept is checked for its content."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.options = {**(harness.settings("clock", str(folder)) or {}), "policy": "auto", "prefetch": True}
        # The ring of events fills up early, else its 8 MiB would come little by little.
        self.options |= {"trace_events_max": 4096, "overflow": "off", "device_budget": BUDGETS[1]}
        self.chance = random.Random(harness.SEED)
        self.kept: list[tuple[torch.Tensor, float]] = []
        self.chores: list[tuple[int, Callable[[int], None]]] = [
            (3, self.evicted), (5, self.paused), (7, self.read_past_operators), (11, self.pinned), (13, self.refused),
            (17, self.budget_changed), (19, self.in_a_thread), (23, self.looked_at), (53, self.saved_and_loaded),
            (151, self.looked_at_closely),
        ]  # fmt: skip

    def begin(self) -> None:
        tierpage.enable(**self.options)
        self.model = torch.nn.Sequential(*[torch.nn.Linear(WIDTH, WIDTH) for _ in range(6)]).to(harness.DEVICE)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)

    def step(self, number: int) -> None:
        with tierpage.paged("activations"):
            x = torch.randn(self.chance.randrange(1, 65), WIDTH).to(harness.DEVICE)
            F.mse_loss(self.model(x), x).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.allocate(number)
        for period, chore in self.chores:
            if number % period == 0:
                chore(number)
        tierpage.step()

    def allocate(self, number: int) -> None:
        """One tensor of any size comes, another goes."""
        with tierpage.paged(f"pool {number % 8}"):
            size = self.chance.randrange(UNIT, 12 * UNIT)
            self.kept.append((torch.full((size,), float(number), device=harness.DEVICE), float(number)))
        while len(self.kept) > KEPT:
            tensor, value = self.kept.pop(self.chance.randrange(len(self.kept)))
            assert bool((tensor == value).all()), value

    def one(self) -> tuple[torch.Tensor, float]:
        return self.chance.choice(self.kept)

    def evicted(self, number: int) -> None:
        tierpage.evict([self.one()[0] for _ in range(4)])
        tierpage.prefetch(self.one()[0])

    def paused(self, number: int) -> None:
        tag = f"pool {int(self.one()[1]) % 8}"
        tierpage.pause(tag)
        if number % 2:
            tierpage.resume(tag)

    def read_past_operators(self, number: int) -> None:
        tensor, value = self.one()
        assert tensor.data_ptr()
        assert tensor[:5].tolist() == [value] * 5
        assert float(torch.from_dlpack(tensor)[-1]) == value
        assert float(pickle.loads(pickle.dumps(tensor[:100].clone()))[0]) == value
        if not CUDA:
            assert tensor.numpy()[-1] == value

    def pinned(self, number: int) -> None:
        tensor, value = self.one()
        with tierpage.pin(tensor):
            assert float(tensor[-1]) == value

    def refused(self, number: int) -> None:
        """Operators that fail leave nothing behind: by their arguments, and for want of memory."""
        with contextlib.suppress(RuntimeError):
            self.one()[0].view(-1, 7, 11, 13)
            self.model(torch.ones(3, 5, device=harness.DEVICE))
        with contextlib.suppress(tierpage.OutOfMemoryError):
            torch.ones(1 << 30 if CUDA else 1 << 22, device=harness.DEVICE)
            raise AssertionError("more than the budget was allocated")

    def budget_changed(self, number: int) -> None:
        tierpage.set_budget("device", BUDGETS[number % 2])

    def in_a_thread(self, number: int) -> None:
        tensor, value = self.one()
        found: list[float] = []
        thread = threading.Thread(target=lambda: found.append(float((tensor + 1)[0])))
        thread.start()
        thread.join()
        assert found == [value + 1]

    def looked_at(self, number: int) -> None:
        tierpage.memory_stats()
        assert tierpage.memory_summary()

    def looked_at_closely(self, number: int) -> None:
        tierpage.export_trace(str(self.folder.parent / "trace.json"))
        tierpage.memory_snapshot()

    def saved_and_loaded(self, number: int) -> None:
        """The weights are a file's from then on, until the next step writes them; the file before is given back."""
        path = self.folder.parent / "model.safetensors"
        before = [parameter.detach().cpu().clone() for parameter in self.model.parameters()]
        tierpage.save(self.model, path)
        tierpage.load(self.model, path)
        assert all(torch.equal(a, b.cpu()) for a, b in zip(before, self.model.parameters(), strict=True))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)

    def end(self) -> None:
        """What lives goes over to plain memory and dies there."""
        tierpage.disable()
        for tensor, value in self.kept:
            assert bool((tensor == value).all()), value
        self.kept.clear()
        del self.model, self.optimizer


def run(folder: Path, steps: int, samples: int) -> Iterator[dict[str, Any]]:
    """Samples of what is used, at equal distances."""
    harness.make_deterministic()
    harness.seed_everything()
    endurance = Endurance(folder)
    endurance.begin()
    start = time.monotonic()
    for number in range(steps):
        endurance.step(number)
        if number < steps // 4 and number % 101 == 100:
            endurance.end()
            endurance.begin()
        if (number + 1) * samples // steps > number * samples // steps:
            yield {"step": number + 1, "seconds": time.monotonic() - start, **usage(folder)}
    endurance.end()


def periods(folder: Path, count: int) -> Iterator[dict[str, Any]]:
    """Samples of what is used while tierpage is off, after each of so many periods in which a few steps were done."""
    harness.make_deterministic()
    harness.seed_everything()
    endurance = Endurance(folder)
    for _ in range(count):
        endurance.begin()
        for number in range(1, 10):
            endurance.step(number)
        endurance.end()
        time.sleep(0.05)  # the pager gives the last of it back
        yield usage(folder)
