"""Recognises models that accelerate or diffusers move between RAM and device, and says which call to delete.

Such a model runs, and gives the right bits; but its tensors are moved twice, by that library and by tierpage, and most
of what the pager learns is thrown away. No operator is looked at for this. A model gets its hooks from one method of a
class, which is replaced while tierpage is enabled; a library that is imported later is met when its module has been
loaded. Hooks from before are found once, among the objects that Python has.
"""

from __future__ import annotations

import functools
import gc
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NamedTuple

import torch

from tierpage import callers, living
from tierpage.errors import TierpageWarning

__all__ = ["OffloadWatch"]


class Door(NamedTuple):
    """A class of hooks: the method that gives a module its hook, and which calls of a program lead there."""

    kind: str
    method: str
    calls: str


DOORS: dict[str, tuple[Door, ...]] = {
    "accelerate.hooks": (
        Door("AlignDevicesHook", "init_hook", "cpu_offload, disk_offload, or device_map with places in RAM or on disk"),
        Door("CpuOffload", "init_hook", "cpu_offload_with_hook, or enable_model_cpu_offload of diffusers"),
    ),
    "diffusers.hooks.group_offloading": (
        Door("GroupOffloadingHook", "initialize_hook", "enable_group_offload, or apply_group_offloading"),
    ),
}
_NOT_THE_CALLER = ("tierpage", "accelerate", "diffusers", "transformers", "huggingface_hub", "torch", "contextlib")
_REPLACED = "_tierpage_offload_watch"


class OffloadWatch:
    """The replaced methods. ``install`` and ``remove`` may be called repeatedly. Each kind of hook is told of once."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._on = False
        self._finder = _Finder(self._open)
        self._undo: list[tuple[type, str, Any]] = []
        self._told: set[str] = set()

    def install(self) -> None:
        """Replaces the methods, now and as the libraries are imported."""
        if self._on:
            return
        self._on = True
        sys.meta_path.insert(0, self._finder)
        for name in DOORS:
            if name in sys.modules:
                self._open(name)

    def remove(self) -> None:
        """Puts the originals back, unless somebody else has replaced them meanwhile."""
        self._on = False
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        for owner, name, original in reversed(self._undo):
            if getattr(owner.__dict__.get(name), _REPLACED, None) is self:
                setattr(owner, name, original)
        self._undo.clear()

    def standing(self) -> list[str]:
        """A warning for each kind of hook that a living model has already. Looks at all objects, if at any."""
        if not any(name in sys.modules for name in DOORS):
            return []
        if _hooked():
            gc.collect()  # the hooks of a model that nobody has any more hold it in a circle
        found = _hooked()
        self._told |= found.keys()
        return [self._text(door, library, module) for door, library, module in found.values()]

    def _open(self, name: str) -> None:
        for door in DOORS[name] if self._on else ():
            kind = getattr(sys.modules.get(name), door.kind, None)
            if isinstance(kind, type) and door.method in kind.__dict__:
                self._replace(kind, door.method, self._hooking(name, door, kind.__dict__[door.method]))

    def _hooking(self, library: str, door: Door, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def given(hook: Any, module: Any) -> Any:
            if self._on and door.kind not in self._told and _offloads(hook):
                self._told.add(door.kind)
                caller = callers.caller_outside(*_NOT_THE_CALLER)
                text = self._text(door, library, module, caller.called)
                warnings.warn(text, TierpageWarning, stacklevel=caller.level)
            return original(hook, module)

        return given

    def _replace(self, owner: type, name: str, replacement: Callable[..., Any]) -> None:
        setattr(replacement, _REPLACED, self)
        self._undo.append((owner, name, owner.__dict__[name]))
        setattr(owner, name, replacement)

    def _text(self, door: Door, library: str, module: torch.nn.Module, called: tuple[str, ...] = ()) -> str:
        if "from_pretrained" in called:
            delete = f"the device_map, max_memory and offload_folder of this {called[0]}"
        else:
            delete = f"this call of {called[0]}" if called else f"the call that asked for it ({door.calls})"
        return (
            f"{living.path_of_module(module)} is moved in and out by {library.partition('.')[0]} ({door.kind}), and so "
            f"everything is moved twice: tierpage does that by itself. Delete {delete}, and give the model its device: "
            f".to('{self._device}') or device_map='{self._device}'."
        )


class _Finder:
    """Tells when one of the modules in DOORS has been imported. Every other import goes past it."""

    def __init__(self, imported: Callable[[str], None]) -> None:
        self._imported = imported

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in DOORS:
            return None
        for finder in [other for other in sys.meta_path if other is not self]:
            spec = finder.find_spec(name, path, target) if hasattr(finder, "find_spec") else None
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader, self._imported)  # type: ignore[assignment]
                return spec
        return None


class _Loader:
    """A module's own loader, which it gets back, and word of its end."""

    def __init__(self, loader: Any, imported: Callable[[str], None]) -> None:
        self._loader = loader
        self._imported = imported

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)  # type: ignore[no-any-return]

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._imported(module.__name__)


def _offloads(hook: Any) -> bool:
    """Not so accelerate's hooks that only bring a module's inputs to where its weights are."""
    return bool(getattr(hook, "offload", True))


def _hooked() -> dict[str, tuple[Door, str, torch.nn.Module]]:
    """For each kind of hook one of the modules that have it."""
    found: dict[str, tuple[Door, str, torch.nn.Module]] = {}
    for module in living.modules():
        for library, door in _doors_of(module):
            found.setdefault(door.kind, (door, library, module))
    return found


def _doors_of(module: torch.nn.Module) -> Iterator[tuple[str, Door]]:
    known = vars(module)
    first = known.get("_hf_hook")
    hooks = [*getattr(first, "hooks", (first,)), *getattr(known.get("_diffusers_hook"), "hooks", {}).values()]
    for library, doors in DOORS.items():
        for door in doors:
            kind = getattr(sys.modules.get(library), door.kind, None)
            if isinstance(kind, type) and any(isinstance(hook, kind) and _offloads(hook) for hook in hooks):
                yield library, door
