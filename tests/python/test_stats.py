"""Numbers and budgets: never above the budget, sums that fit together, and running out of memory."""

from __future__ import annotations

import re
import threading
import time
from typing import Any

import pytest
import torch

import harness
import models
import tierpage


class Sampler:
    """Reads the statistics in a thread of its own for as long as the block lasts."""

    def __enter__(self) -> Sampler:
        self.samples: list[dict[str, Any]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._stop.is_set():
            self.samples.append(dict(tierpage.memory_stats()))
            time.sleep(0.001)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


@pytest.mark.parametrize("configuration", ["clock", "prefetch", "paranoid"])
def test_budgets_hold_while_training(device: str, configuration: str, tmp_path: Any) -> None:
    chosen = harness.settings(configuration, str(tmp_path)) or {}
    with tierpage.enable(**chosen) as pager:
        budgets = {tier: getattr(pager.config, f"{tier}_budget") for tier in ("device", "host", "nvme")}
        ballast = harness.make_ballast(chosen)
        with Sampler() as sampler:
            values = models.transformer_adamw_fused(harness.Run(device, ballast))
        assert len(sampler.samples) > 3
        for stats in sampler.samples:
            for tier, budget in budgets.items():
                assert stats[f"resident_bytes.{tier}.current"] <= budget, tier
                assert stats[f"resident_bytes.{tier}.current"] <= stats[f"resident_bytes.{tier}.peak"], tier
            assert stats["pinned_bytes.current"] <= budgets["device"]
        for name in (
            "faults.count",
            "grants.count",
            "fetch_bytes.host_to_device",
            "stall_seconds.total",
            "allocations.count",
        ):
            series = [stats[name] for stats in sampler.samples]
            assert series == sorted(series), f"{name} went back"
        last = tierpage.memory_stats()
        for tier, budget in budgets.items():
            assert last[f"resident_bytes.{tier}.peak"] <= budget
        assert last["fetch_bytes.host_to_device"] > 0
        assert last["writeback_bytes.device_to_host"] + last["writeback_bytes.device_to_nvme"] > 0
        if configuration == "clock":
            assert last["writeback_bytes.host_to_nvme"] + last["writeback_bytes.device_to_nvme"] > 0
            assert last["fetch_bytes.nvme_to_host"] + last["fetch_bytes.nvme_to_device"] > 0
        assert last["num_ooms"] == last["storage_errors.count"] == 0
        assert last["engagements.count"] >= last["engaged"] == 1
        assert last["stall_seconds.max"] <= last["stall_seconds.total"]
        assert last["faults.pages"] > 0
        del values, ballast


def test_levels_return_to_zero(options: dict[str, Any], device: str) -> None:
    with tierpage.enable(**options):
        x = torch.ones(100, 100, device=device)
        assert tierpage.memory_stats()["live_bytes.current"] == 40_000
        y = x + 1
        stats = tierpage.memory_stats()
        assert stats["live_bytes.current"] == stats["live_bytes.peak"] == 80_000
        assert stats["pinned_bytes.current"] == 0
        assert stats["engaged"] == stats["engagements.count"] == 0
        assert "all fits" in tierpage.memory_summary()
        assert stats["pinned_bytes.peak"] >= 80_000
        del x, y
        stats = tierpage.memory_stats()
        assert stats["live_bytes.current"] == stats["pinned_bytes.current"] == 0
        assert stats["live_bytes.peak"] == 80_000
        tierpage.reset_peak_memory_stats()
        tierpage.reset_accumulated_memory_stats()
        stats = tierpage.memory_stats()
        assert stats["live_bytes.peak"] == stats["allocations.count"] == 0
        assert "tierpage memory" in tierpage.memory_summary()
    assert tierpage.memory_stats() == {}


def test_placement_adds_up(options: dict[str, Any], device: str) -> None:
    with tierpage.enable(**options):
        x = torch.ones(200, 200, device=device).add_(1)
        assert tierpage.where(x).device >= 160_000
        tierpage.evict(x)
        placement = tierpage.where(x[3:, ::2])
        assert placement.paged
        assert placement.bytes >= 160_000
        assert (placement.device, placement.nvme) == (0, 0)
        assert placement.host >= 160_000
        x.sum()
        placement = tierpage.where(x)
        assert placement.device == placement.host > 0  # a read keeps the lower copy
        x.add_(1)
        assert tierpage.where(x).host == 0  # a write does not
        del x


def test_one_operator_larger_than_the_budget(options: dict[str, Any], device: str) -> None:
    with tierpage.enable(**options, overflow="off") as pager:
        model = torch.nn.Linear(96, 96).to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        x = torch.ones(8, 96, device=device)

        def step() -> float:
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            return float(loss.detach())

        losses = [step()]
        budget = pager.config.device_budget
        large = [torch.ones(budget // 4 * 6 // 10, device=device) for _ in range(2)]  # each fits, the sum does not
        for _ in range(2):
            with pytest.raises(tierpage.OutOfMemoryError) as caught:
                large[0].add_(large[1])
            assert isinstance(caught.value, torch.OutOfMemoryError)
            assert len(caught.value.args) == 1
            text = str(caught.value)
            assert " out of memory." in text
            assert "add_" in text
            granule = pager.config.in_force["granule_bytes"]
            assert f"{2 * -(-large[0].nbytes // granule) * granule / 2**20:.1f} MiB" in text
            # What torch's own allocator holds (cuBLAS's workspace, say) counts against the budget and is named.
            left, native = re.search(r"device budget is ([\d.]+) MiB(?: after ([\d.]+) MiB)?", text).groups(default="0")
            assert float(left) + float(native) == pytest.approx(budget / 2**20, abs=0.2)
            losses.append(step())
        with pytest.raises(torch.OutOfMemoryError, match=r" out of memory\."):
            torch.ones(budget // 4 + 4096, device=device)
        with pytest.raises(torch.OutOfMemoryError):
            large[0] * 2  # the result does not fit beside the argument
        assert float(large[0].max()) == float(large[1].min()) == 1.0
        losses.append(step())
        assert tierpage.memory_stats()["num_ooms"] >= 4
        assert tierpage.memory_stats()["pinned_bytes.current"] == 0
        del large, caught
        losses.append(step())
    assert losses == sorted(losses, reverse=True)


def test_out_of_memory_in_backward(options: dict[str, Any], device: str) -> None:
    """Raised through autograd's engine with its class and text, also from another thread."""
    with tierpage.enable(**options, overflow="off") as pager:
        size = pager.config.device_budget // 4 * 4 // 10
        x = torch.ones(size, device=device, requires_grad=True)

        class Greedy(torch.autograd.Function):
            @staticmethod
            def forward(context: Any, x: torch.Tensor) -> torch.Tensor:
                return x[:10] * 1

            @staticmethod
            def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
                return torch.stack([torch.ones(size, device=device)] * 2)[0]

        caught: list[BaseException] = []

        def work() -> None:
            try:
                Greedy.apply(x).sum().backward()
            except BaseException as error:
                caught.append(error)

        work()
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert [type(error) for error in caught] == [tierpage.OutOfMemoryError] * 2
        assert all(" out of memory." in str(error) for error in caught)
        caught.clear()
        (x[:10] * 2).sum().backward()
        assert float(x.grad.sum()) == 20.0


def test_pins_that_leave_no_room(options: dict[str, Any], device: str) -> None:
    with tierpage.enable(**options, overflow="off") as pager:
        size = pager.config.device_budget // 4 * 6 // 10
        a, b = torch.ones(size, device=device), torch.ones(size, device=device)
        with tierpage.pin(a):
            with pytest.raises(tierpage.OutOfMemoryError, match=r"tierpage\.pin"), tierpage.pin(b):
                pass
            with pytest.raises(tierpage.OutOfMemoryError):
                b.add_(1)
            a.add_(1)
        b.add_(1)
        assert float(a.min()) == float(b.min()) == 2.0
        del a, b
