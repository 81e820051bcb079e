"""Finds the tensors and modules that Python has in this process, and what the program calls them.

The garbage collector knows every tensor, module and optimizer that Python has. What only C++ holds (activations that
autograd has saved) and what ``gc.freeze`` hid is not found.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from typing import Any

import torch

__all__ = ["modules", "modules_and_optimizers", "named_tensors", "path_of_module"]


def named_tensors() -> Iterator[tuple[torch.Tensor, str | None]]:
    """Every tensor that is found, gradients included, with its name; ``None``: no module and no optimizer has it.

    A parameter or buffer is named ``GPT.blocks.0.weight`` (the class of the outermost module, then as in
    ``state_dict``), a gradient ``GPT.blocks.0.weight.grad``, a state ``AdamW of GPT.blocks.0.weight: exp_avg``.
    """
    tensors: list[torch.Tensor] = []
    modules: list[torch.nn.Module] = []
    optimizers: list[torch.optim.Optimizer] = []
    _find(tensors, modules, optimizers)
    names = _names_in(modules)
    names |= _names_of_states(optimizers, names)
    gradients: list[torch.Tensor] = []  # held, so that no other object gets the identity of one
    for tensor in tensors:
        gradient = _gradient_of(tensor)
        if gradient is not None:
            gradients.append(gradient)
            if id(tensor) in names:
                names.setdefault(id(gradient), f"{names[id(tensor)]}.grad")
    for tensor in {id(tensor): tensor for tensor in [*tensors, *gradients]}.values():
        yield tensor, names.get(id(tensor))


def modules() -> list[torch.nn.Module]:
    """Every module that is found."""
    found: list[torch.nn.Module] = []
    _find([], found, [])
    return found


def modules_and_optimizers() -> list[torch.nn.Module | torch.optim.Optimizer]:
    """Every module and every optimizer that is found."""
    modules: list[torch.nn.Module] = []
    optimizers: list[torch.optim.Optimizer] = []
    _find([], modules, optimizers)
    return [*modules, *optimizers]


def path_of_module(module: torch.nn.Module) -> str:
    """``GPT.blocks.0``: the class of the outermost module that holds it, then its name in there."""
    return _path_of(module, _parents_of(modules()))


def _find(tensors: list[torch.Tensor], modules: list[torch.nn.Module], optimizers: list[torch.optim.Optimizer]) -> None:
    wanted: dict[type, list[Any]] = {
        torch.Tensor: tensors, torch.nn.Module: modules, torch.optim.Optimizer: optimizers
    }  # fmt: skip
    lists: dict[type, list[Any] | None] = {}
    for thing in gc.get_objects():
        kind = type(thing)  # isinstance would run code of proxies
        if kind not in lists:
            lists[kind] = next((found for base, found in wanted.items() if issubclass(kind, base)), None)
        found = lists[kind]
        if found is not None:
            found.append(thing)


def _gradient_of(tensor: torch.Tensor) -> torch.Tensor | None:
    """The gradient of a leaf: Python may have no object for it yet."""
    with torch._C.DisableTorchFunctionSubclass():
        try:
            return tensor.grad if tensor.is_leaf else None
        except RuntimeError:  # some wrappers have none to tell of
            return None


def _table(thing: object, name: str) -> list[tuple[Any, Any]]:
    """A copy of a dictionary among an object's own attributes, empty where its ``__init__`` has not made it yet."""
    found = vars(thing).get(name)
    return list(found.items()) if isinstance(found, dict) else []


def _names_in(modules: Sequence[torch.nn.Module]) -> dict[int, str]:
    """Names of parameters and buffers by the identity of the tensor."""
    parents = _parents_of(modules)
    names: dict[int, str] = {}
    for module in modules:
        for kind in ("_parameters", "_buffers"):
            for name, tensor in _table(module, kind):
                if tensor is not None:
                    names.setdefault(id(tensor), f"{_path_of(module, parents)}.{name}")
    return names


def _parents_of(modules: Sequence[torch.nn.Module]) -> dict[int, tuple[torch.nn.Module, str]]:
    """By the identity of a module: one that holds it, and under which name."""
    parents: dict[int, tuple[torch.nn.Module, str]] = {}
    for module in modules:
        for name, child in _table(module, "_modules"):
            parents.setdefault(id(child), (module, str(name)))
    return parents


def _path_of(module: torch.nn.Module, parents: dict[int, tuple[torch.nn.Module, str]]) -> str:
    steps: list[str] = []
    seen: set[int] = set()
    while id(module) in parents and id(module) not in seen:  # modules may hold each other in a circle
        seen.add(id(module))
        module, name = parents[id(module)]
        steps.append(name)
    return ".".join([type(module).__name__, *reversed(steps)])


def _names_of_states(optimizers: Sequence[torch.optim.Optimizer], names: dict[int, str]) -> dict[int, str]:
    found: dict[int, str] = {}
    for optimizer in optimizers:
        for parameter, state in _table(optimizer, "state"):
            of = names.get(id(parameter), "a parameter")
            for name, value in list(state.items()) if isinstance(state, dict) else ():
                if isinstance(value, torch.Tensor):
                    found.setdefault(id(value), f"{type(optimizer).__name__} of {of}: {name}")
    return found
