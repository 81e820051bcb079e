"""Where models, optimizers and what autograd saves enter the offloading of other libraries: the methods that are given
them, and what a program asked for.

A library's own names stand here and nowhere else. Names of private classes are looked up with care: where a release has
others, nothing is recognised, and nothing fails.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch

__all__ = ["DOORS", "KEPT", "LIBRARIES", "Door", "Moved", "doors_of", "saving_now"]

Moved = torch.nn.Module | torch.optim.Optimizer | type  # the class: of hooks on what autograd saves, which nobody owns


class Door(NamedTuple):
    """One way into one library's offloading."""

    library: str  # the module that has the class
    kind: str  # the class
    method: str  # of the class: where something is offloaded from then on
    offloaded: Callable[[Mapping[str, Any]], Moved | None]  # by the method's arguments; None: it stays
    standing: Callable[[Moved, type], bool]  # whether a module or an optimizer has been through; with the class
    mover: str  # who moves it, in a warning's words; no two doors have the same
    delete: str  # what a program has to delete
    call: bool  # `delete` names calls, of which a warning can say which one it was; else options
    placing: tuple[str, ...]  # what then gives the model its device


def _hook_of_arguments(arguments: Mapping[str, Any]) -> torch.nn.Module | None:
    found: torch.nn.Module = arguments["module"]
    return found if _offloads(arguments["self"]) else None


def _offloads(hook: Any) -> bool:
    """Not so accelerate's hooks that only bring a module's inputs to where its weights are."""
    return bool(getattr(hook, "offload", True))


def _has_hook(module: Moved, kind: type) -> bool:
    known = vars(module)
    first = known.get("_hf_hook")
    hooks = [*getattr(first, "hooks", (first,)), *getattr(known.get("_diffusers_hook"), "hooks", {}).values()]
    return any(isinstance(hook, kind) and _offloads(hook) for hook in hooks)


def _wrapped(arguments: Mapping[str, Any]) -> torch.nn.Module | None:
    offload = getattr(arguments.get("cpu_offload"), "offload_params", False)
    found: torch.nn.Module | None = arguments["module"] if offload else None
    return found


def _is_wrapped(module: Moved, kind: type) -> bool:
    return isinstance(module, kind) and bool(getattr(vars(module).get("cpu_offload"), "offload_params", False))


def _sharded(arguments: Mapping[str, Any]) -> torch.nn.Module | None:
    modules = arguments.get("modules")
    return modules[0] if modules and _is_policy(arguments.get("offload_policy")) else None


def _is_policy(policy: Any) -> bool:
    known = getattr(sys.modules.get("torch.distributed.fsdp"), "CPUOffloadPolicy", None)
    return isinstance(known, type) and isinstance(policy, known)


def _is_sharded(module: Moved, kind: type) -> bool:
    known = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)
    if not isinstance(known, type) or not isinstance(module, known):
        return False
    try:
        state: Any = known._get_fsdp_state(module)  # type: ignore[attr-defined]
        groups = getattr(state, "_fsdp_param_groups", None) or [state._fsdp_param_group]  # torch 2.13, and before
    except (AttributeError, AssertionError):  # made only half
        return False
    return any(isinstance(group, kind) and _is_policy(getattr(group, "offload_policy", None)) for group in groups)


def _in_engine(arguments: Mapping[str, Any]) -> torch.nn.Module | None:
    return arguments.get("model") if _zero_offloads(vars(arguments["self"]).get("_config")) else None


def _is_engine(module: Moved, kind: type) -> bool:
    return isinstance(module, kind) and _zero_offloads(vars(module).get("_config"))


def _zero_offloads(config: Any) -> bool:
    zero = getattr(config, "zero_config", None)
    parts = [getattr(zero, name, None) for name in ("offload_optimizer", "offload_param")]
    return any(getattr(part, "device", "none") in ("cpu", "nvme") for part in parts)


def _paged_optimizer(arguments: Mapping[str, Any]) -> torch.optim.Optimizer | None:
    found: torch.optim.Optimizer | None = arguments["self"] if arguments.get("is_paged") else None
    return found


def _is_paged_optimizer(optimizer: Moved, kind: type) -> bool:
    return isinstance(optimizer, kind) and bool(vars(optimizer).get("is_paged"))


def _optimizer(arguments: Mapping[str, Any]) -> torch.optim.Optimizer:
    found: torch.optim.Optimizer = arguments["self"]
    return found


def _hooks(arguments: Mapping[str, Any]) -> type:
    return type(arguments["self"])


_TO, _MAP = ".to('{}')", "device_map='{}'"

DOORS = (
    Door(
        "accelerate.hooks", "AlignDevicesHook", "init_hook", _hook_of_arguments, _has_hook,
        "accelerate (AlignDevicesHook)",
        "cpu_offload, disk_offload, or device_map with places in RAM or on disk", True, (_TO, _MAP),
    ),
    Door(
        "accelerate.hooks", "CpuOffload", "init_hook", _hook_of_arguments, _has_hook,
        "accelerate (CpuOffload)",
        "cpu_offload_with_hook, or enable_model_cpu_offload of diffusers", True, (_TO, _MAP),
    ),
    Door(
        "diffusers.hooks.group_offloading", "GroupOffloadingHook", "initialize_hook", _hook_of_arguments, _has_hook,
        "diffusers (GroupOffloadingHook)",
        "enable_group_offload, or apply_group_offloading", True, (_TO, _MAP),
    ),
    Door(
        "torch.distributed.fsdp.fully_sharded_data_parallel", "FullyShardedDataParallel", "__init__", _wrapped, _is_wrapped,
        "FSDP (CPUOffload)",
        "cpu_offload=CPUOffload(offload_params=True), or the option of a trainer that stands for it", False, (_TO,),
    ),
    Door(
        "torch.distributed.fsdp._fully_shard._fsdp_param_group", "FSDPParamGroup", "__init__", _sharded, _is_sharded,
        "FSDP (CPUOffloadPolicy)",
        "offload_policy=CPUOffloadPolicy(), or the option of a trainer that stands for it", False, (_TO,),
    ),
    Door(
        "deepspeed.runtime.engine", "DeepSpeedEngine", "_configure_distributed_model", _in_engine, _is_engine,
        "DeepSpeed (DeepSpeedEngine)",
        "offload_optimizer and offload_param from its ZeRO configuration", False, (),
    ),
    Door(
        "bitsandbytes.optim.optimizer", "Optimizer8bit", "__init__", _paged_optimizer, _is_paged_optimizer,
        "bitsandbytes (is_paged)",
        "is_paged=True, or take the optimizer without Paged in its name, as an option of a trainer too", False, (),
    ),
    Door(
        "torchao.optim.cpu_offload", "CPUOffloadOptimizer", "__init__", _optimizer, isinstance,
        "torchao (CPUOffloadOptimizer)",
        "CPUOffloadOptimizer, and use the optimizer that it is given", False, (),
    ),
    Door(
        "torch.autograd.graph", "save_on_cpu", "__init__", _hooks, lambda thing, kind: False,
        "torch (save_on_cpu)",
        "save_on_cpu, or the offload_wrapper that uses it", False, (),
    ),
)  # fmt: skip
LIBRARIES = frozenset(door.library for door in DOORS)
# Of these, whose models and optimizers can be found among all objects. Hooks of autograd are no objects of a program's.
KEPT = LIBRARIES - {"torch.autograd.graph"}


def doors_of(thing: Moved) -> Iterator[Door]:
    """The doors that a module or an optimizer has been through."""
    for door in DOORS:
        kind = getattr(sys.modules.get(door.library), door.kind, None)
        if isinstance(kind, type) and door.standing(thing, kind):
            yield door


def saving_now() -> tuple[Door, type] | None:
    """The door of what this thread's autograd saves, if another moves it now, and the class of the hooks."""
    door = next(door for door in DOORS if door.library == "torch.autograd.graph")
    kind: type = getattr(sys.modules[door.library], door.kind)
    try:
        hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    except (AttributeError, RuntimeError):  # another release of torch
        return None
    pack = hooks[0] if hooks else None
    return (door, kind) if getattr(pack, "__qualname__", "").startswith(f"{door.kind}.") else None
