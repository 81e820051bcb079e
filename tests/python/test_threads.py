"""Threads against one budget, Ctrl-C in a wait, and threads that end while their memory lives on."""

from __future__ import annotations

import gc
import threading
import time
from typing import Any

import pytest
import torch

import harness
import tierpage


def run_threads(count: int, work: Any) -> None:
    errors: list[BaseException] = []

    def body(index: int) -> None:
        try:
            work(index)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=body, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.fixture
def tight(device: str, tmp_path: Any) -> dict[str, Any]:
    return dict(harness.settings("clock", str(tmp_path)) or {})


def test_threads_share_one_budget(tight: dict[str, Any], device: str) -> None:
    """Every thread's working set is larger than the budget; a lost or doubled write shows in the counts."""
    with tierpage.enable(**tight) as pager:
        size = pager.config.device_budget // 4 // 20
        shared = [torch.zeros(size, device=device) for _ in range(10)]
        locks = [threading.Lock() for _ in shared]

        def work(index: int) -> None:
            own = [torch.full((size,), float(index), device=device) for _ in range(15)]
            for step in range(6):
                for number, tensor in enumerate(own):
                    tensor.add_(1)
                    if (number + step) % 5 == index:
                        which = (number * 3 + step) % len(shared)
                        with locks[which]:
                            shared[which].add_(1)
                total = own[step] + own[-step - 1]
                assert bool((total == 2 * (index + step + 1)).all())
            assert all(bool((tensor == index + 6).all()) for tensor in own)

        run_threads(4, work)
        hits = [0] * len(shared)
        for index in range(4):
            for step in range(6):
                for number in range(15):
                    if (number + step) % 5 == index:
                        hits[(number * 3 + step) % len(shared)] += 1
        assert [float(t.min()) for t in shared] == [float(t.max()) for t in shared] == [float(h) for h in hits]
        assert tierpage.memory_stats()["faults.count"] > 100


def test_tensors_outlive_their_thread(tight: dict[str, Any], device: str) -> None:
    with tierpage.enable(**tight) as pager:
        size = pager.config.device_budget // 4 // 20
        made: dict[int, torch.Tensor] = {}

        def work(index: int) -> None:
            made[index] = torch.full((size,), float(index), device=device)
            made[index].data_ptr()

        for start in range(0, 40, 4):
            run_threads(4, lambda index, start=start: work(start + index))
        assert all(bool((tensor == index).all()) for index, tensor in made.items())
        run_threads(4, lambda index: [made.pop(index + 4 * n) for n in range(10)])
        gc.collect()
        assert tierpage.memory_stats()["live_bytes.current"] == 0
        assert tierpage.memory_stats()["pinned_bytes.current"] == 0


def test_hints_and_statistics_beside_training(tight: dict[str, Any], device: str) -> None:
    """pin, evict, prefetch, pause, budgets and statistics from other threads, while one trains."""
    torch.manual_seed(1)
    x = torch.randn(16, 96).to(device)
    models = [
        torch.nn.Sequential(torch.nn.Linear(96, 192), torch.nn.ReLU(), torch.nn.Linear(192, 96)) for _ in range(1)
    ]
    start = [p.detach().clone() for p in models[0].parameters()]

    def train(model: torch.nn.Module) -> list[float]:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        losses = []
        for _ in range(40):
            optimizer.zero_grad()
            loss = (model(x) - x).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        return losses

    expected = train(models[0].to(device))
    with tierpage.enable(**tight), tierpage.paged("model"):
        model = torch.nn.Sequential(torch.nn.Linear(96, 192), torch.nn.ReLU(), torch.nn.Linear(192, 96)).to(device)
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), start, strict=True):
                parameter.copy_(value)
        stop = threading.Event()
        budget = tierpage.config().device_budget

        def meddle(index: int) -> None:
            if index == 0:
                try:
                    assert train(model) == expected
                finally:
                    stop.set()
            while not stop.is_set():
                if index == 1:
                    tierpage.evict(model)
                    tierpage.prefetch(model)
                elif index == 2:
                    with tierpage.pin(model[0].weight):
                        tierpage.memory_summary()
                elif index == 3:
                    tierpage.pause("model")
                    tierpage.resume("model")
                    tierpage.set_budget("device", budget)
                time.sleep(0.002)

        run_threads(4, meddle)


INTERRUPT = """
import os, signal, threading, time, harness, tierpage, torch
options = dict(harness.settings("paranoid", "."))
options["paranoid"] = False
tierpage.enable(**options)
budget = tierpage.config().device_budget
a = torch.ones(budget // 4 * 6 // 10, device=harness.DEVICE)
b = torch.ones(budget // 4 * 6 // 10, device=harness.DEVICE)
a.add_(1)
ready, done = threading.Event(), threading.Event()

library = torch.library.Library("tierpage_test", "DEF")
library.define("slow(Tensor x) -> Tensor")

def slow(x):
    # An operator that holds its pages for as long as it runs.
    ready.set()
    done.wait(60)
    return x[:4].clone()

library.impl("slow", slow, "CPU" if harness.DEVICE == "cpu" else "CUDA")
torch.ones(5000, device=harness.DEVICE).add_(1)
thread = threading.Thread(target=lambda: torch.ops.tierpage_test.slow(a))
thread.start()
ready.wait()
threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
start = time.monotonic()
try:
    b.add_(1)
except KeyboardInterrupt:
    waited = time.monotonic() - start
else:
    raise AssertionError("no KeyboardInterrupt")
finally:
    done.set()
thread.join()
assert 0.3 < waited < 10, waited
b.add_(1)
assert float(b.max()) == 2.0 and float(a.max()) == 2.0
tierpage.disable()
"""


def test_interrupt_while_waiting_for_pages(device: str) -> None:
    harness.run_child(INTERRUPT)
