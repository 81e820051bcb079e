"""A network of a few layers for other libraries to offload, and what tierpage says of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

import tierpage


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(64, 64)
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(64, 64) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return x


def told(call: Callable[[], object]) -> list[warnings.WarningMessage]:
    """The warnings of tierpage's own that the call raises."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [one for one in caught if issubclass(one.category, tierpage.TierpageWarning)]
