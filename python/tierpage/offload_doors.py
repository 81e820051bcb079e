"""Where models enter the offloading of other libraries: the methods that are given a module, and what a program asked for.

A library's own names stand here and nowhere else. Names of private classes are looked up with care: where a release has
others, nothing is recognised, and nothing fails.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch

__all__ = ["DOORS", "LIBRARIES", "Door", "doors_of"]


class Door(NamedTuple):
    """One way into one library's offloading."""

    library: str  # the module that has the class
    kind: str  # the class
    method: str  # of the class: where a module is offloaded from then on
    offloaded: Callable[[Mapping[str, Any]], torch.nn.Module | None]  # by the method's arguments; None: it stays
    standing: Callable[[torch.nn.Module, type], bool]  # whether a module has been through; with the class
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


def _has_hook(module: torch.nn.Module, kind: type) -> bool:
    known = vars(module)
    first = known.get("_hf_hook")
    hooks = [*getattr(first, "hooks", (first,)), *getattr(known.get("_diffusers_hook"), "hooks", {}).values()]
    return any(isinstance(hook, kind) and _offloads(hook) for hook in hooks)


def _wrapped(arguments: Mapping[str, Any]) -> torch.nn.Module | None:
    offload = getattr(arguments.get("cpu_offload"), "offload_params", False)
    found: torch.nn.Module | None = arguments["module"] if offload else None
    return found


def _is_wrapped(module: torch.nn.Module, kind: type) -> bool:
    return isinstance(module, kind) and bool(getattr(vars(module).get("cpu_offload"), "offload_params", False))


def _sharded(arguments: Mapping[str, Any]) -> torch.nn.Module | None:
    modules = arguments.get("modules")
    return modules[0] if modules and _is_policy(arguments.get("offload_policy")) else None


def _is_policy(policy: Any) -> bool:
    known = getattr(sys.modules.get("torch.distributed.fsdp"), "CPUOffloadPolicy", None)
    return isinstance(known, type) and isinstance(policy, known)


def _is_sharded(module: torch.nn.Module, kind: type) -> bool:
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


def _is_engine(module: torch.nn.Module, kind: type) -> bool:
    return isinstance(module, kind) and _zero_offloads(vars(module).get("_config"))


def _zero_offloads(config: Any) -> bool:
    zero = getattr(config, "zero_config", None)
    parts = [getattr(zero, name, None) for name in ("offload_optimizer", "offload_param")]
    return any(getattr(part, "device", "none") in ("cpu", "nvme") for part in parts)


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
)  # fmt: skip
LIBRARIES = frozenset(door.library for door in DOORS)


def doors_of(module: torch.nn.Module) -> Iterator[Door]:
    """The doors that a module has been through."""
    for door in DOORS:
        kind = getattr(sys.modules.get(door.library), door.kind, None)
        if isinstance(kind, type) and door.standing(module, kind):
            yield door
