"""Low-rank adapters (Hu et al. 2021) beside the frozen linear layers of a decoder: ``bench/train.py --lora RANK``.

What such a training moves: frozen weights come up, for the forward and for the backward pass, and are never written;
only adapters, their gradients and their optimizer's states are.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

ALPHA_OF_RANK = 2.0  # the usual choice: what the adapters add is scaled by it


class Adapted(nn.Module):
    """A frozen linear layer W and its adapter: x -> x W^T + 2 (x A^T) B^T, with A (rank, in) and B (out, rank)."""

    def __init__(self, linear: nn.Linear, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.linear = linear
        device = linear.weight.device
        first = torch.empty(rank, linear.in_features, device=device)
        self.first = nn.Parameter(first.normal_(0.0, linear.in_features**-0.5, generator=generator))
        self.second = nn.Parameter(torch.zeros(linear.out_features, rank, device=device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (..., in) -> (..., out)."""
        return self.linear(x) + ALPHA_OF_RANK * functional.linear(functional.linear(x, self.first), self.second)


def adapt(model: nn.Module, rank: int, device: str, seed: int = 1) -> None:
    """Freezes all parameters of the model and puts an adapter beside each linear layer but the head."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    generator = torch.Generator(device=device).manual_seed(seed)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name != "head":
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, Adapted(module, rank, generator))
