"""Programs that need more at once than the device budget run, with the bits of a plain run; ``overflow="off"`` refuses."""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import harness
import tierpage
from tierpage.session import current

CUDA = harness.DEVICE != "cpu"
BUDGET = (1024 if CUDA else 4) * harness.MIB
SIDE = 16384 if CUDA else 1024  # a square matrix of float32 is as large as the budget


@pytest.fixture
def tight(options: dict[str, Any]) -> dict[str, Any]:
    return {**options, "device_budget": BUDGET, "host_budget": 16 * BUDGET}


@pytest.fixture
def pager(tight: dict[str, Any]) -> Iterator[Any]:
    with tierpage.enable(**tight) as pager:
        yield pager


def square(seed: int, device: str, side: int = SIDE) -> torch.Tensor:
    return torch.randn(side, side, generator=torch.Generator(device).manual_seed(seed), device=device)


def ended() -> None:
    """Nothing lies beyond the budget any more: it leaves as soon as nobody holds it."""
    until = time.monotonic() + 20
    while tierpage.memory_stats()["overflow_bytes.current"] > 0:
        assert time.monotonic() < until, "memory beyond the budget is kept"
        time.sleep(0.01)


def test_a_product_of_matrices_each_as_large_as_the_budget(tight: dict[str, Any], device: str) -> None:
    expected = (square(1, device) @ square(2, device)).cpu()
    with tierpage.enable(**tight):
        a, b = square(1, device), square(2, device)
        for _ in range(2):
            assert torch.equal((a @ b).cpu(), expected)
            ended()  # else the next product may find what this one took still there
        stats = tierpage.memory_stats()
        assert stats["overflows.count"] >= 2
        assert stats["overflow_bytes.peak"] >= 2 * BUDGET * 9 // 10  # three matrices, one of which fits
        assert stats["resident_bytes.device.peak"] <= BUDGET
        summary = tierpage.memory_summary()
        named = next(line for line in summary.splitlines() if line.startswith("aten::mm "))
        assert int(named.split()[1]) >= 2


def test_a_loss_over_more_than_the_budget_with_gradients(tight: dict[str, Any], device: str) -> None:
    def work() -> list[torch.Tensor]:
        weight = square(3, device, SIDE // 2).requires_grad_()
        logits = square(4, device, SIDE // 2) @ weight
        logits = torch.cat([logits, logits * 0.5, logits * 0.25, logits * 2], dim=1)
        targets = torch.arange(logits.shape[0], device=device)
        loss = F.cross_entropy(logits, targets)
        loss.backward()
        assert weight.grad is not None
        return [loss.detach().cpu(), weight.grad.cpu()]

    expected = work()
    with tierpage.enable(**tight):
        for _ in range(2):
            assert all(torch.equal(a, b) for a, b in zip(expected, work(), strict=True))
        assert tierpage.memory_stats()["overflows.count"] > 0
        ended()


def test_what_an_operator_writes_beyond_the_budget_is_kept(pager: Any, device: str) -> None:
    large = torch.ones(3 * BUDGET // 4, device=device)
    large.add_(1)
    large[::2] = 5
    ended()
    assert float(large.min()) == 2
    assert float(large.max()) == 5
    assert float(large.double().sum()) == large.numel() // 2 * 7


def test_threads_whose_operators_fit_one_by_one(tight: dict[str, Any], device: str) -> None:
    torch.manual_seed(0)
    width = SIDE // 2
    weights = [square(seed, device, width) / width**0.5 for seed in range(4)]
    inputs = [square(10 + seed, device, width)[:64] for seed in range(4)]

    def run(x: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
        for weight in weights:
            x = F.gelu(F.linear(x, weight))
        return x

    expected = [run(x, weights).cpu() for x in inputs]
    weights_cpu, inputs_cpu = [w.cpu() for w in weights], [x.cpu() for x in inputs]
    del weights, inputs
    if CUDA:
        gc.collect()
        torch.cuda.empty_cache()  # what torch's own allocator keeps would leave no room to pages
    with tierpage.enable(**{**tight, "device_budget": BUDGET * 5 // 8}):
        shared = [w.to(device).clone() for w in weights_cpu]
        own = [x.to(device).clone() for x in inputs_cpu]
        problems: list[Any] = []

        def work(index: int) -> None:
            try:
                for _ in range(20):
                    if not torch.equal(run(own[index], shared).cpu(), expected[index]):
                        problems.append(index)
            except BaseException as error:
                problems.append(error)

        threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not problems
        assert tierpage.memory_stats()["num_ooms"] == 0
        ended()


def test_more_than_the_budget_can_be_pinned(pager: Any, device: str) -> None:
    tensors = [torch.full((BUDGET // 8,), float(i), device=device) for i in range(4)]  # half of the budget each
    with tierpage.pin(tensors):
        assert tierpage.memory_stats()["overflow_bytes.current"] >= BUDGET // 2
        tensors[3].add_(1)
    ended()
    assert [float(tensor[0]) for tensor in tensors] == [0, 1, 2, 4]


def test_off_refuses_with_the_budget_that_would_do(tight: dict[str, Any], device: str) -> None:
    with tierpage.enable(**{**tight, "overflow": "off"}):
        with pytest.raises(torch.OutOfMemoryError, match=r" out of memory\..*device budget is"):
            torch.ones(BUDGET // 2, device=device)
        assert tierpage.memory_stats()["overflows.count"] == 0


def test_without_ram_it_refuses(tight: dict[str, Any], device: str) -> None:
    with tierpage.enable(**{**tight, "host_budget": BUDGET}):
        with pytest.raises(torch.OutOfMemoryError, match=r" out of memory\."):
            torch.ones(2 * BUDGET, device=device)
        x = torch.ones(BUDGET // 16, device=device)
        assert float(x.sum()) == x.numel()


def test_one_line_says_which_operator_and_what_budget(
    tight: dict[str, Any], device: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="tierpage"), tierpage.enable(**tight):
        large = torch.ones(BUDGET // 2, device=device)
        for _ in range(5):
            large.add_(1)
        ended()
        current().log_notices()
        assert "requests beyond the device budget" in tierpage.memory_summary()
    said = [record.message for record in caplog.records if "overflow" in record.message]
    assert len(said) == 1, said
    assert "device_budget of" in said[0]
