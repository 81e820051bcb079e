"""Operators are seen from their first call on, however their library was loaded."""

from __future__ import annotations

import _ctypes
import ctypes
import importlib.util
from collections.abc import Iterator
from importlib.machinery import ExtensionFileLoader
from typing import Any

import pytest
import torch

import tierpage
from tierpage.loading import LoadWatch


@pytest.fixture
def calls() -> Iterator[list[int]]:
    """One entry for each time that operators were taken up."""
    taken: list[int] = []
    watch = LoadWatch(lambda: taken.append(1))
    watch.install()
    yield taken
    watch.remove()


def test_whatever_loads_a_library_takes_its_operators_up(calls: list[int]) -> None:
    ctypes.CDLL(None)
    assert len(calls) == 1
    with pytest.raises(OSError, match="no_such"):
        ctypes.CDLL("libno_such_library.so")  # its dependencies may have been loaded
    assert len(calls) == 2
    file = _ctypes.__file__
    loader = ExtensionFileLoader("_ctypes", file)
    spec = importlib.util.spec_from_file_location("_ctypes", file, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    assert len(calls) >= 4


def test_the_originals_come_back() -> None:
    before = [ctypes.CDLL.__init__, ExtensionFileLoader.create_module, torch.library.Library.define]
    watch = LoadWatch(lambda: None)
    for _ in range(2):
        watch.install()
        watch.install()
        assert ctypes.CDLL.__init__ is not before[0]
        watch.remove()
        assert [ctypes.CDLL.__init__, ExtensionFileLoader.create_module, torch.library.Library.define] == before


@pytest.mark.parametrize("key", ["", "CompositeImplicitAutograd", "CompositeExplicitAutograd"])
def test_the_first_call_of_an_operator_is_seen(options: dict[str, Any], device: str, key: str) -> None:
    with tierpage.enable(**options):
        x = torch.ones(1024, 64, device=device)
        library = torch.library.Library("tierpage_first", "DEF")
        try:
            library.define("first(Tensor x) -> float")
            library.impl("first", lambda _: 1.0, key or ("CUDA" if device == "cuda" else "CPU"))
            before = tierpage.memory_stats()["operators.paged"]
            torch.ops.tierpage_first.first(x)
            assert tierpage.memory_stats()["operators.paged"] == before + 1
        finally:
            library._destroy()
            del torch.ops.tierpage_first
