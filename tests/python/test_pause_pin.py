"""Hints and scopes: paged and tags, pause and resume, prefetch, evict, pin, budgets, disable and enable again."""

from __future__ import annotations

import gc
import threading
import time
from typing import Any

import pytest
import torch

import harness
import tierpage

SIZE = 128


def placed(tensor: torch.Tensor) -> int:
    return tierpage.where(tensor).device


def wait_for(condition: Any, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def numbers(device: str, start: int = 0) -> torch.Tensor:
    return torch.arange(float(start), float(start + SIZE * SIZE), device=device)


def expected(start: int = 0) -> torch.Tensor:
    return torch.arange(float(start), float(start + SIZE * SIZE))


def test_pause_and_resume(options: dict[str, Any], device: str) -> None:
    with tierpage.enable(**options):
        with tierpage.paged("policy"):
            first = [numbers(device, i) for i in range(4)]
            with tierpage.paged("other"):
                second = numbers(device, 9)
            third = numbers(device, 10)
        outside = numbers(device, 11)
        for tensor in (*first, second, third, outside):
            tensor.add_(0)
        before = [tensor.data_ptr() for tensor in first]
        for _ in range(65):
            outside.add_(0)
        moved = tierpage.pause("policy")
        assert moved >= 5 * SIZE * SIZE * 4
        assert [placed(t) for t in (*first, third)] == [0] * 5
        assert placed(second) > 0
        assert placed(outside) > 0
        assert torch.equal(first[2].cpu(), expected(2))  # used while paused: it comes back
        tierpage.pause("policy")
        assert tierpage.resume("policy") >= 4 * SIZE * SIZE * 4
        wait_for(lambda: all(placed(t) > 0 for t in (*first, third)))
        assert [tensor.data_ptr() for tensor in first] == before
        for i, tensor in enumerate(first):
            assert torch.equal(tensor.cpu(), expected(i))
        for call in (tierpage.pause, tierpage.resume):
            with pytest.raises(tierpage.ConfigError, match='"unknown" is unknown'):
                call("unknown")
            with pytest.raises(tierpage.ConfigError):
                call("")


def test_a_tag_whose_tensors_have_died_gives_nothing(options: dict[str, Any], device: str) -> None:
    with tierpage.enable(**options):
        with tierpage.paged("gone"):
            numbers(device)
        gc.collect()
        assert tierpage.pause("gone") == 0
        assert tierpage.resume("gone") == 0


def test_pause_gives_the_device_memory_back(options: dict[str, Any], device: str) -> None:
    with tierpage.enable(**options):
        with tierpage.paged("all"):
            tensors = [numbers(device, i).add_(0) for i in range(8)]
        held = tierpage.memory_stats()["resident_bytes.device.current"]
        tierpage.pause("all")
        assert tierpage.memory_stats()["resident_bytes.device.current"] <= held - 8 * SIZE * SIZE * 4
        tierpage.resume("all")
        assert all(torch.equal(t.cpu(), expected(i)) for i, t in enumerate(tensors))


def test_pause_keeps_out_what_nobody_uses(options: dict[str, Any], device: str) -> None:
    """In every lap so far all were used in turn, so that each use predicts the next ones."""
    with tierpage.enable(**options):
        with tierpage.paged("all"):
            tensors = [numbers(device, i) for i in range(80)]
        for _ in range(8):
            for tensor in tensors:
                tensor.add_(0)
        tierpage.pause("all")
        assert [placed(t) for t in tensors] == [0] * 80
        for tensor in tensors[:40]:
            tensor.add_(0)
        assert tierpage.prefetch(tensors[60:]) == 0
        time.sleep(0.2)
        assert [placed(t) for t in tensors[40:]] == [0] * 40
        assert all(torch.equal(t.cpu(), expected(i)) for i, t in enumerate(tensors))  # used: they come back
        tierpage.evict(tensors)
        tierpage.pause("all")
        assert tierpage.resume("all") > 0
        wait_for(lambda: any(placed(t) > 0 for t in tensors))


def test_tags_belong_to_their_thread(options: dict[str, Any], device: str) -> None:
    made: list[torch.Tensor] = []

    def work() -> None:
        made.append(numbers(device))

    with tierpage.enable(**{**options, "scope": "explicit"}):
        with tierpage.paged("here"):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
            mine = numbers(device)
        assert not tierpage.where(made[0]).paged
        assert tierpage.where(mine).paged
        del mine
        made.clear()


def test_explicit_scope(options: dict[str, Any], device: str) -> None:
    with tierpage.enable(**{**options, "scope": "explicit", "paranoid": True}):
        plain = numbers(device)
        with tierpage.paged():
            inside = numbers(device)
            with tierpage.paged("tag"):
                nested = inside + plain
            model = torch.nn.Linear(SIZE, SIZE, device=device)
        after = inside * 2
        assert [tierpage.where(t).paged for t in (plain, inside, nested, model.weight, after)] == [
            False,
            True,
            True,
            True,
            False,
        ]
        optimizer = torch.optim.AdamW(model.parameters())
        x = torch.ones(4, SIZE, device=device)
        for _ in range(2):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        assert torch.equal(nested.cpu(), expected() * 2)
        assert tierpage.memory_stats()["faults.count"] > 0
        assert harness.missed_accesses() == 0
        del inside, nested, model, optimizer


def test_evict_and_prefetch(options: dict[str, Any], device: str) -> None:
    with tierpage.enable(**options):
        tensors = [numbers(device, i).add_(0) for i in range(3)]
        faults = tierpage.memory_stats()["faults.count"]
        assert tierpage.evict(tensors) >= 3 * SIZE * SIZE * 4
        assert [placed(t) for t in tensors] == [0, 0, 0]
        assert tierpage.evict(tensors) == 0
        assert tierpage.prefetch(tensors[0], {"x": tensors[1]}) >= 2 * SIZE * SIZE * 4
        wait_for(lambda: placed(tensors[0]) > 0 and placed(tensors[1]) > 0)
        assert placed(tensors[2]) == 0
        tensors[0].add_(1)
        tensors[1].add_(1)
        assert tierpage.memory_stats()["faults.count"] == faults
        tensors[2].add_(1)
        assert tierpage.memory_stats()["faults.count"] > faults
        assert all(torch.equal(t.cpu(), expected(i) + 1) for i, t in enumerate(tensors))
        with tierpage.pin(tensors[0]):
            assert tierpage.evict(tensors[0]) == 0
            assert placed(tensors[0]) > 0
        model = torch.nn.Linear(SIZE, SIZE).to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        model(torch.ones(2, SIZE, device=device)).sum().backward()
        optimizer.step()
        assert tierpage.evict(model, optimizer) > SIZE * SIZE * 4
        tierpage.step()
        optimizer.step()


def test_hints_do_nothing_while_off() -> None:
    x = torch.ones(10)
    assert not tierpage.is_enabled()
    assert tierpage.evict(x) == tierpage.prefetch(x) == 0
    with tierpage.pin(x):
        tierpage.step()
    assert tierpage.where(x) == tierpage.Placement(False, 40)
    with pytest.raises(tierpage.TierpageError), tierpage.paged():
        pass


def test_disable_brings_everything_back(options: dict[str, Any], device: str, tmp_path: Any) -> None:
    tight = {
        **options,
        **{k: v for k, v in (harness.settings("clock", str(tmp_path)) or {}).items() if k != "device_budget"},
    }
    model = None
    for _ in range(2):
        pager = tierpage.enable(**tight)
        with tierpage.paged("out"):
            tensors = [numbers(device, i).mul_(2) for i in range(40)]
        if model is not None:
            model.mul_(2)  # of the period before
        assert tierpage.pause("out") != 0
        pager.disable()
        assert not tierpage.is_enabled()
        for i, tensor in enumerate(tensors):
            assert torch.equal(tensor.cpu(), expected(i) * 2)
            tensor.add_(1)
            assert float(tensor[3]) == (i + 3) * 2 + 1
        if device == "cpu":
            assert tensors[0].numpy()[4] == 9
        if model is None:
            model = tensors[1]
        del tensors, tensor
        gc.collect()
    assert float(model[0]) == (2 + 1) * 2


def test_budget_changes_while_running(options: dict[str, Any], device: str) -> None:
    with tierpage.enable(**options) as pager:
        start = pager.config.device_budget
        tensors = [numbers(device, i).add_(0) for i in range(60)]
        smaller = start // 4 if device == "cpu" else start // 2
        tierpage.set_budget("device", smaller)
        wait_for(lambda: tierpage.memory_stats()["resident_bytes.device.current"] <= smaller)
        assert tierpage.config().device_budget == smaller
        assert all(torch.equal(t.cpu(), expected(i)) for i, t in enumerate(tensors))
        assert tierpage.memory_stats()["resident_bytes.device.current"] <= smaller
        tierpage.set_budget("device", start)
        assert all(torch.equal((t + 1).cpu(), expected(i) + 1) for i, t in enumerate(tensors))


def test_context_manager_and_idempotence(options: dict[str, Any]) -> None:
    with tierpage.enable(**options) as outer:
        with tierpage.enable(**options):
            assert outer.active
        assert outer.active
    assert not outer.active
    outer.disable()
    tierpage.disable()


def test_a_smaller_host_budget_gives_ram_back(device: str) -> None:
    if device != "cpu":
        pytest.skip("locked RAM goes back in pieces of 256 MiB")
    harness.run_child("""
import gc, time, psutil, torch, tierpage
MIB = 1024**2

def rss():
    return psutil.Process().memory_info().rss // MIB

def ready():
    return tierpage.memory_stats()["ready_bytes.host"] // MIB

def until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, (rss(), ready())
        time.sleep(0.05)

tierpage.enable(device="cpu", device_budget="8MiB", host_budget="500MiB", min_paged_bytes=65536, granule_bytes=65536,
                frame_bytes_max=1 << 20)
tensors = [torch.full((1 << 18,), float(i)) for i in range(200)]
full = rss()
assert ready() >= 190, ready()
del tensors[:196]
tierpage.set_budget("host", "16MiB")
del tensors[:2]
until(lambda: ready() <= 16)
until(lambda: rss() < full - 150)
assert [float(t.mean()) for t in tensors] == [198.0, 199.0]
tierpage.reset_accumulated_memory_stats()
assert 0 < ready() <= 16  # a level, no total
tierpage.set_budget("host", "500MiB")
tensors += [torch.full((1 << 18,), float(i)) for i in range(100)]
assert [float(t.mean()) for t in tensors] == [198.0, 199.0, *range(100)]
tierpage.disable()
""")
