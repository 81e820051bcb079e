"""Fused optimizer steps that run parameter by parameter when next used: same bits, whoever looks first."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import harness
import tierpage

CUDA = harness.DEVICE == "cuda"
SIZE = 2048 if CUDA else 256  # a parameter has 16 MiB or 256 KiB; all tensors of a step 64 times as much
LAYERS = 12
SMALL, LARGE = ("512MiB", "4GiB") if CUDA else ("4MiB", "128MiB")
JUST_ENOUGH = "420MiB" if CUDA else "10MiB"


@pytest.fixture
def tight(options: dict[str, Any]) -> dict[str, Any]:
    """Device memory for a third of parameters, gradients and states."""
    return {**options, "device_budget": SMALL, "host_budget": "4GiB", "list_run_fraction": 0.05, "defer_updates": True}


def model(device: str) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(*(nn.Linear(SIZE, SIZE, bias=False) for _ in range(LAYERS))).to(device)


def train(
    device: str, steps: int = 4, after: Callable[[nn.Module, torch.optim.Optimizer], Any] = lambda *_: None
) -> list[Any]:
    """Losses, parameters and states, and whatever ``after`` each step gives."""
    network = model(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)
    seen = []
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        batch = torch.randn(16, SIZE, generator=generator).to(device)
        network(batch).square().mean().backward()
        optimizer.step()
        seen.append(after(network, optimizer))
        optimizer.zero_grad()
    seen += [parameter.detach().cpu() for parameter in network.parameters()]
    for state in optimizer.state.values():
        seen += [state["exp_avg"].cpu(), state["exp_avg_sq"].cpu()]
    return seen


@pytest.fixture(autouse=True)
def empty_cache() -> Any:
    """What earlier runs left with torch's own allocator would count against the device budget."""

    def release() -> None:
        gc.collect()
        if CUDA:
            torch.cuda.empty_cache()

    release()
    return release


def same(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first.cpu(), second.cpu())
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


def deferred() -> int:
    return int(tierpage.memory_stats()["updates.deferred"])


def layer(network: nn.Module) -> torch.Tensor:
    return next(iter(network.parameters()))


LOOKS: dict[str, Callable[[nn.Module, torch.optim.Optimizer], Any]] = {
    "nothing": lambda network, optimizer: None,
    "norm": lambda network, optimizer: [p.norm().cpu() for p in network.parameters()],
    "gradient": lambda network, optimizer: layer(network).grad.clone().cpu(),
    "numpy": lambda network, optimizer: layer(network).detach().cpu().numpy().sum().item(),
    "tolist": lambda network, optimizer: layer(network)[0].tolist(),
    "state_dict": lambda network, optimizer: [v.cpu() for v in network.state_dict().values()],
    "clamp": lambda network, optimizer: layer(network).data.clamp_(-0.01, 0.01).cpu(),
    "foreach": lambda network, optimizer: torch._foreach_mul_([p.data for p in network.parameters()], 0.99),
}


@pytest.mark.parametrize("look", LOOKS)
def test_bits_whoever_looks_first(tight: dict[str, Any], device: str, look: str, empty_cache: Any) -> None:
    after = LOOKS[look]
    plain = train(device, after=after)
    empty_cache()
    with tierpage.enable(**tight):
        before = deferred()
        paged = train(device, after=after)
        assert deferred() > before
    assert look == "foreach" or same(plain[:4], paged[:4])
    assert same(plain[4:], paged[4:])


def test_what_was_deleted_is_let_go(tight: dict[str, Any], device: str) -> None:
    with tierpage.enable(**tight):
        network = model(device)
        step_once(network)
        alive = tierpage.memory_stats()["live_bytes.current"]
        del network
        gc.collect()
        kept = torch.zeros(SIZE, SIZE, device=device)
        for _ in range(70):  # operators and allocations look now and then
            kept = kept + 1
        assert tierpage.memory_stats()["live_bytes.current"] < alive / 4


def test_switched_off(tight: dict[str, Any], device: str, empty_cache: Any) -> None:
    plain = train(device)
    empty_cache()
    with tierpage.enable(**{**tight, "defer_updates": False}):
        before = deferred()
        assert same(plain, train(device))
        assert deferred() == before


def test_nothing_is_deferred_where_all_fits(options: dict[str, Any], device: str) -> None:
    with tierpage.enable(**{**options, "device_budget": LARGE, "list_run_fraction": 0.01, "defer_updates": True}):
        before = deferred()
        train(device)
        assert deferred() == before


def test_nothing_is_deferred_without_room_for_what_is_kept(
    tight: dict[str, Any], device: str, empty_cache: Any
) -> None:
    plain = train(device)
    empty_cache()
    with tierpage.enable(**{**tight, "host_budget": JUST_ENOUGH}):
        before = deferred()
        assert same(plain, train(device))
        assert deferred() == before


def test_a_step_that_fails_half_way_is_completed_at_the_latest_by_disable(tight: dict[str, Any], device: str) -> None:
    budget = (512 if CUDA else 4) * harness.MIB
    pager = tierpage.enable(**{**tight, "defer_updates": False, "overflow": "off"})
    try:
        sizes = [SIZE * SIZE, SIZE * SIZE, budget // 8, SIZE * SIZE]  # four tensors of the third exceed the budget
        parameters = [nn.Parameter(torch.ones(size, device=device)) for size in sizes]
        optimizer = torch.optim.AdamW(parameters, lr=0.1, fused=True)
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        with pytest.raises(tierpage.OutOfMemoryError, match="2 of 4 tensors of its lists are done, the others will be"):
            optimizer.step()
    finally:
        pager.disable()
    first = [float(parameter.detach()[0]) for parameter in parameters]
    assert first[0] < 1
    assert len(set(first)) == 1


def test_what_updates_keep_makes_no_allocation_fail(tight: dict[str, Any], device: str) -> None:
    budget = (512 if CUDA else 4) * harness.MIB
    with tierpage.enable(**{**tight, "host_budget": 5 * budget}):
        before = deferred()
        parameters = [nn.Parameter(torch.ones(budget // 64, device=device)) for _ in range(16)]
        optimizer = torch.optim.AdamW(parameters, lr=0.1, fused=True)
        for _ in range(2):
            for parameter in parameters:
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()
            optimizer.zero_grad()
        assert deferred() > before
        kept = [torch.ones(budget // 64, device=device) for _ in range(36)]  # 2 + 1 + 2.25 budgets of 6
        assert all(float(tensor[0]) == 1 for tensor in kept)


@pytest.mark.parametrize("way", ["pin", "disable", "pause", "data_ptr", "save"])
def test_what_reads_past_operators_runs_it_first(
    tight: dict[str, Any], device: str, way: str, empty_cache: Any, tmp_path: Path
) -> None:
    plain = model(device)
    step_once(plain)
    empty_cache()
    with tierpage.enable(**tight):
        with tierpage.paged("weights"):
            network = model(device)
        step_once(network)
        weight = layer(network)
        if way == "pin":
            with tierpage.pin(weight):
                step_once(network)  # pinned: not deferred
                step_once(plain)
        elif way == "pause":
            tierpage.pause("weights")
        elif way == "save":  # reads what RAM holds, past every operator
            tierpage.save(network, tmp_path / "model.safetensors")
            saved = load_file(tmp_path / "model.safetensors")
            assert same([saved[name] for name, _ in plain.named_parameters()], list(plain.parameters()))
        elif way == "data_ptr":
            assert weight.data_ptr() != 0
        else:
            tierpage.disable()
        assert same(list(network.parameters()), list(plain.parameters()))
        del network, weight


@pytest.mark.skipif(CUDA, reason="NumPy reads the memory of CPU tensors")
def test_arrays_that_share_memory_see_every_step(tight: dict[str, Any], device: str) -> None:
    with tierpage.enable(**tight):
        network, plain = model(device), model(device)
        array = layer(network).detach().numpy()
        for _ in range(3):
            step_once(network)
        tierpage.disable()
        for _ in range(3):
            step_once(plain)
        assert (array == layer(plain).detach().numpy()).all()
    with tierpage.enable(**tight):
        network = model(device)
        array = layer(network).detach().numpy()
        before = array.copy()
        step_once(network)
        assert (array != before).any()  # read past everything, at once


def step_once(network: nn.Module) -> None:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5, fused=True)
    for parameter in network.parameters():
        parameter.grad = parameter.detach() * 0.5
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.skipif(not CUDA, reason="streams are CUDA's")
def test_another_stream_sees_what_ran_late(tight: dict[str, Any], device: str, empty_cache: Any) -> None:
    def run() -> list[torch.Tensor]:
        network = model(device)
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, fused=True)
        average = [torch.zeros_like(p) for p in network.parameters()]
        side = torch.cuda.Stream()
        for _ in range(6):
            network(torch.ones(16, SIZE, device=device)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            side.wait_stream(torch.cuda.current_stream())
            network(torch.ones(4096, SIZE, device=device))  # runs what was deferred, after what `side` waits for
            with torch.cuda.stream(side), torch.no_grad():
                for mean, parameter in zip(average, network.parameters(), strict=True):
                    mean.lerp_(parameter, 0.5)
            torch.cuda.current_stream().wait_stream(side)
        return [mean.cpu() for mean in average]

    plain = run()
    empty_cache()
    with tierpage.enable(**tight):
        before = deferred()
        assert same(plain, run())
        assert deferred() > before
