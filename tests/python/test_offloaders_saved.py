"""Optimizers whose states others move, and what autograd saves and others move, are recognised, with what to delete.

test_offloaders.py has the models that accelerate and diffusers move, test_offloaders_sharded.py those of FSDP and
DeepSpeed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.autograd.graph import save_on_cpu

import harness
import tierpage
from offloaded_net import Net, told


@pytest.fixture
def enable(options: dict[str, Any]) -> Iterator[Callable[[], tierpage.Pager]]:
    """Here, since a warning names the line that enables."""
    yield lambda: tierpage.enable(**options)
    tierpage.disable()


def gradient(hooks: Callable[[], Any] | None) -> torch.Tensor:
    torch.manual_seed(1)
    model = Net().to(harness.DEVICE)
    x = torch.ones(4, 64, device=harness.DEVICE)
    if hooks is None:
        model(x).sum().backward()
    else:
        with hooks():
            model(x).sum().backward()
    assert model.first.weight.grad is not None
    return model.first.weight.grad.cpu()


def test_what_autograd_saves(enable: Callable[[], tierpage.Pager]) -> None:
    plain = gradient(None)
    with enable():
        found = []
        (warning,) = told(lambda: found.append(gradient(save_on_cpu)))
        assert str(warning.message) == (
            "What autograd saves is moved in and out by torch (save_on_cpu), and so everything is moved twice: tierpage "
            "does that by itself. Delete save_on_cpu, or the offload_wrapper that uses it."
        )
        assert warning.filename == __file__
        assert torch.equal(found[0], plain)
        assert told(lambda: gradient(save_on_cpu)) == []


def test_modules_that_save_on_the_cpu(enable: Callable[[], tierpage.Pager]) -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import offload_wrapper

    with enable():
        model = offload_wrapper(Net().to(harness.DEVICE))
        (warning,) = told(lambda: model(torch.ones(4, 64, device=harness.DEVICE)))
        assert "torch (save_on_cpu)" in str(warning.message)
        assert warning.filename == __file__


def test_hooks_from_before(enable: Callable[[], tierpage.Pager]) -> None:
    with save_on_cpu():
        (warning,) = told(enable)
        assert "torch (save_on_cpu)" in str(warning.message)
        assert warning.filename == __file__


def test_other_hooks_are_not_told_of(enable: Callable[[], tierpage.Pager]) -> None:
    before = save_on_cpu.__dict__["__init__"]
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: saved, lambda saved: saved):
        assert told(enable) == []
        assert told(lambda: gradient(None)) == []
    assert told(lambda: torch.utils.checkpoint.checkpoint(Net(), torch.ones(4, 64), use_reentrant=False)) == []
    tierpage.disable()
    assert save_on_cpu.__dict__["__init__"] is before


def test_bitsandbytes(enable: Callable[[], tierpage.Pager]) -> None:
    optim = pytest.importorskip("bitsandbytes.optim")
    with enable():
        model = Net()
        assert told(lambda: optim.AdamW8bit(model.parameters())) == []
        (warning,) = told(lambda: optim.PagedAdamW8bit(model.parameters()))
        text = str(warning.message)
        assert text.startswith("The state of PagedAdamW8bit is moved in and out by bitsandbytes (is_paged), ")
        assert text.endswith(
            "Delete is_paged=True, or take the optimizer without Paged in its name, as an option of a trainer too."
        )
        assert warning.filename == __file__
        assert told(lambda: optim.Lion(model.parameters(), is_paged=True)) == []


def test_bitsandbytes_from_before(enable: Callable[[], tierpage.Pager]) -> None:
    optim = pytest.importorskip("bitsandbytes.optim")
    optimizers = [optim.AdamW8bit(Net().parameters()), optim.PagedLion(Net().parameters())]
    (warning,) = told(enable)
    assert str(warning.message).startswith("The state of PagedLion is moved in and out by bitsandbytes (is_paged)")
    assert warning.filename == __file__
    del optimizers


def test_torchao(enable: Callable[[], tierpage.Pager]) -> None:
    offload = pytest.importorskip("torchao.optim.cpu_offload")

    def make() -> None:
        with contextlib.suppress(AssertionError):  # it is for GPUs only
            offload.CPUOffloadOptimizer(Net().to(harness.DEVICE).parameters(), torch.optim.AdamW, fused=True)

    with enable():
        (warning,) = told(make)
        assert str(warning.message).startswith("The state of CPUOffloadOptimizer is moved in and out by torchao")
        assert warning.filename == __file__
