"""Recognises what another library moves between RAM and device, and says what to delete: models, the states of
optimizers, what autograd saves.

A program that does this runs, and gives the right bits; but its tensors are moved twice, by that library and by
tierpage, and most of what the pager learns is thrown away. No operator is looked at for this. A model is given away by
one method of a class (offload_doors.py), which is replaced while tierpage is enabled; a library that is imported later
is met when its module has been loaded. Models and optimizers from before are found once, among the objects that Python
has.
"""

from __future__ import annotations

import functools
import gc
import inspect
import sys
import warnings
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch

from tierpage import callers, living
from tierpage.errors import TierpageWarning
from tierpage.offload_doors import DOORS, KEPT, LIBRARIES, Door, Moved, doors_of, saving_now

__all__ = ["OffloadWatch"]

_NOT_THE_CALLER = (
    "tierpage", "accelerate", "bitsandbytes", "contextlib", "deepspeed", "diffusers", "huggingface_hub", "torch",
    "torchao", "transformers",
)  # fmt: skip
_REPLACED = "_tierpage_offload_watch"


class OffloadWatch:
    """The replaced methods. ``install`` and ``remove`` may be called repeatedly. Each door is told of once."""

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
        for name in LIBRARIES:
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
        """A warning for each door that something living has been through. Looks at all objects, if at any."""
        found: dict[str, tuple[Door, Moved]] = {}
        if any(name in sys.modules for name in KEPT):
            if _given_away():
                gc.collect()  # what offloads a model that nobody has any more holds it in a circle
            found = _given_away()
        saving = saving_now()
        if saving is not None:
            found[saving[0].mover] = saving
        self._told |= found.keys()
        return [self._text(door, thing) for door, thing in found.values()]

    def _open(self, library: str) -> None:
        for door in DOORS if self._on else ():
            kind = getattr(sys.modules.get(library), door.kind, None)
            if door.library == library and isinstance(kind, type) and door.method in kind.__dict__:
                self._replace(kind, door.method, self._watching(door, kind.__dict__[door.method]))

    def _watching(self, door: Door, original: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(original)

        @functools.wraps(original)
        def given(*args: Any, **kwargs: Any) -> Any:
            thing = _offloaded(door, signature, args, kwargs) if self._on and door.mover not in self._told else None
            if thing is not None:
                caller = callers.caller_outside(*_NOT_THE_CALLER)
                text = self._text(door, thing, caller.called)
                warnings.warn(text, TierpageWarning, stacklevel=caller.level)
                self._told.add(door.mover)  # where the warning is an error, the next model is one as well
            return original(*args, **kwargs)

        return given

    def _replace(self, owner: type, name: str, replacement: Callable[..., Any]) -> None:
        setattr(replacement, _REPLACED, self)
        self._undo.append((owner, name, owner.__dict__[name]))
        setattr(owner, name, replacement)

    def _text(self, door: Door, thing: Moved, called: tuple[str, ...] = ()) -> str:
        if not door.call:
            delete = door.delete
        elif "from_pretrained" in called:
            delete = f"the device_map, max_memory and offload_folder of this {called[0]}"
        else:
            delete = f"this call of {called[0]}" if called else f"the call that asked for it ({door.delete})"
        place = " or ".join(way.format(self._device) for way in door.placing)
        return (
            f"{_words_for(thing)} is moved in and out by {door.mover}, and so everything is moved twice: "
            f"tierpage does that by itself. Delete {delete}{', and give the model its device: ' if place else ''}{place}."
        )


class _Finder:
    """Tells when one of LIBRARIES has been imported. Every other import goes past it."""

    def __init__(self, imported: Callable[[str], None]) -> None:
        self._imported = imported

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in LIBRARIES:
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


def _words_for(thing: Moved) -> str:
    if isinstance(thing, torch.nn.Module):
        return living.path_of_module(thing)
    return "What autograd saves" if isinstance(thing, type) else f"The state of {type(thing).__name__}"


def _offloaded(door: Door, signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Moved | None:
    """What a call gives away. None: nothing, or none that this release can take."""
    try:
        found = door.offloaded(signature.bind(*args, **kwargs).arguments)
    except (TypeError, LookupError):
        return None
    return found if isinstance(found, Moved) else None


def _given_away() -> dict[str, tuple[Door, Moved]]:
    """For each door one of the modules and optimizers that have been through it."""
    found: dict[str, tuple[Door, Moved]] = {}
    for thing in living.modules_and_optimizers():
        for door in doors_of(thing):
            found.setdefault(door.mover, (door, thing))
    return found
