"""Finds the tensors in what a program hands to a hint: tensors, modules, optimizers and containers of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from tierpage.errors import ConfigError

__all__ = ["tensors_in"]


def tensors_in(things: Iterable[Any]) -> Iterator[torch.Tensor]:
    """Every tensor in tensors, modules, optimizers, storages' containers (list, tuple, set, dict), nested.

    Raises ConfigError that names the type of anything else.
    """
    for thing in things:
        if isinstance(thing, torch.Tensor):
            yield thing
        elif isinstance(thing, torch.nn.Module):
            yield from thing.parameters()
            yield from thing.buffers()
        elif isinstance(thing, torch.optim.Optimizer):
            for state in thing.state.values():
                yield from (value for value in state.values() if isinstance(value, torch.Tensor))
        elif isinstance(thing, dict):
            yield from tensors_in(thing.values())
        elif isinstance(thing, Iterable) and not isinstance(thing, (str, bytes)):
            yield from tensors_in(thing)
        else:
            raise ConfigError(
                f"{type(thing).__name__} {thing!r:.80} holds no tensors: give tensors, modules, optimizers or containers of them."
            )
