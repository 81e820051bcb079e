"""From what was asked for to what is in force: defaults that respect containers and other programs, and limits."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Protocol

from tierpage import system
from tierpage.errors import ConfigError
from tierpage.settings import Config, Request, paths_of
from tierpage.system import format_bytes

GIB = 1024**3
_MIB = 1024**2


class Machine(Protocol):
    """What the defaults need to know of the machine; tests give a fake."""

    def memory(self) -> system.Memory: ...
    def cuda_count(self) -> int: ...
    def cuda_current(self) -> int: ...
    def cuda_memory(self, index: int) -> tuple[int, int]: ...
    def disk(self, path: str) -> tuple[int, int]: ...
    def mount(self, path: str) -> system.Mount | None: ...
    def local_ranks(self) -> int: ...


class ThisMachine:
    """The machine that the process runs on. ``cuda_current`` and ``cuda_memory`` initialise CUDA."""

    def memory(self) -> system.Memory:
        return system.memory()

    def cuda_count(self) -> int:
        import torch

        return torch.cuda.device_count() if torch.cuda.is_available() else 0

    def cuda_current(self) -> int:
        import torch

        return torch.cuda.current_device()

    def cuda_memory(self, index: int) -> tuple[int, int]:
        import torch

        return torch.cuda.mem_get_info(index)

    def disk(self, path: str) -> tuple[int, int]:
        return system.free_bytes(path)

    def mount(self, path: str) -> system.Mount | None:
        return system.mount_of(path)

    def local_ranks(self) -> int:
        return system.local_ranks(os.environ)


def resolve(request: Request, machine: Machine | None = None) -> Config:
    """Completes and checks a request on this machine. Raises ConfigError; changes nothing."""
    return _Resolver(request, machine or ThisMachine()).config()


class _Resolver:
    def __init__(self, request: Request, machine: Machine) -> None:
        self.request = request
        self.machine = machine
        self.origins: dict[str, str] = dict(request.origins)
        self.notes: list[str] = []
        self.memory = machine.memory()
        self.ranks = machine.local_ranks()

    def config(self) -> Config:
        device, index = self._device()
        path = self._nvme_path()
        device_budget = self._device_budget(device, index)
        host_budget = self._host_budget(device_budget if device == "cpu" else 0)
        nvme_budget = self._nvme_budget(path, device_budget + host_budget)
        resolved: dict[str, Any] = {
            "device": device,
            "device_index": index,
            "device_budget": device_budget,
            "host_budget": host_budget,
            "nvme_budget": nvme_budget,
            "nvme_path": path,
        }
        if path is not None:
            resolved.update(self._staging(host_budget))
        plain = {name: value for name, value in self.request.values.items() if name not in resolved}
        # On CPU raw reads that nothing announces are served as well, and there would see the value before the update.
        plain.setdefault("defer_updates", device == "cuda")
        for name in Config.__dataclass_fields__:
            self.origins.setdefault(name, "default")
        for name in ("origins", "in_force", "notes"):
            self.origins.pop(name)
        return Config(**resolved, **plain, origins=MappingProxyType(self.origins), notes=tuple(self.notes))

    def _asked(self, name: str) -> Any:
        return self.request.values.get(name)

    def _device(self) -> tuple[str, int]:
        asked = self._asked("device")
        count = 0 if asked and asked[0] == "cpu" else self.machine.cuda_count()
        if asked is None:
            self.origins["device"] = "default: " + ("the current CUDA device" if count else "no CUDA device is usable")
            asked = ("cuda", None) if count else ("cpu", None)
        kind, index = asked
        self.origins["device_index"] = self.origins["device"]
        if kind == "cpu":
            return "cpu", 0
        if not count:
            raise ConfigError(
                'device="cuda" was asked for, but torch sees no usable CUDA device: run `tierpage doctor`, or give device="cpu".'
            )
        if index is None:
            return "cuda", self.machine.cuda_current()
        if index >= count:
            raise ConfigError(
                f'device="cuda:{index}" does not exist: this process sees {count} CUDA device(s), numbered from 0.'
            )
        return "cuda", index

    def _device_budget(self, device: str, index: int) -> int:
        asked = self._asked("device_budget")
        if device == "cuda":
            free, total = self.machine.cuda_memory(index)
            margin = max(512 * _MIB, total // 20)
            if asked is None:
                self.origins["device_budget"] = (
                    f"default: {format_bytes(free)} free VRAM less a margin of {format_bytes(margin)}"
                )
                return self._positive("device_budget", free - margin, f"{format_bytes(free)} of VRAM are free")
            budget = self._within("device_budget", asked.of(total), total, f"the {format_bytes(total)} of VRAM")
            if budget > free:
                self.notes.append(
                    f"device_budget is {format_bytes(budget)}, but only {format_bytes(free)} of VRAM are free now."
                )
            return budget
        if asked is None:
            usable = self._usable_memory()
            self.origins["device_budget"] = (
                f"default: half of {format_bytes(usable)} ({self.memory.source} less a margin)"
            )
            return self._positive(
                "device_budget", usable // 2, f"{format_bytes(self.memory.available)} of RAM are available"
            )
        return self._within("device_budget", asked.of(self.memory.limit), self.memory.limit, self._limit_words())

    def _host_budget(self, taken: int) -> int:
        asked = self._asked("host_budget")
        available = self.memory.available
        if asked is not None:
            budget = self._within("host_budget", asked.of(self.memory.limit), self.memory.limit, self._limit_words())
        else:
            usable = self._usable_memory() - taken
            shared = f" divided by {self.ranks} local ranks" if self.ranks > 1 else ""
            self.origins["host_budget"] = (
                f"default: {self.memory.source} of {format_bytes(available)} less a margin{shared}"
            )
            if taken:
                self.origins["host_budget"] += " and less device_budget"
            budget = self._positive("host_budget", usable, f"{format_bytes(available)} of RAM are available")
        if taken + budget > available:
            self.notes.append(
                f"The budgets in RAM are {format_bytes(taken + budget)} together, but the {self.memory.source} is {format_bytes(available)} now."
            )
        return budget

    def _staging(self, host_budget: int) -> dict[str, int]:
        """Staging buffers are part of the RAM budget: by default at most a quarter of it, at least 4 of 256 KiB."""
        names = ("staging_slot_bytes", "staging_slots")
        size: int = self._asked(names[0]) or Config.staging_slot_bytes
        slots: int = self._asked(names[1]) or Config.staging_slots
        while size * slots > host_budget // 4 and self._asked(names[1]) is None and slots > 4:
            slots //= 2
        while size * slots > host_budget // 4 and self._asked(names[0]) is None and size > _MIB // 4:
            size //= 2
        return {names[0]: size, names[1]: slots}

    def _nvme_path(self) -> str | tuple[str, ...] | None:
        asked = paths_of(self._asked("nvme_path"))
        if not asked:
            if self._asked("nvme_budget") is not None:
                raise ConfigError(
                    "nvme_budget is given but nvme_path is not: give nvme_path, a directory on a local disk."
                )
            return None
        paths = tuple(os.path.abspath(os.path.expanduser(path)) for path in asked)
        for path in paths:
            mount = check_directory(path, self.machine)
            if mount is not None and mount.kind in system.NETWORK_FILE_SYSTEMS:
                self.notes.append(
                    f"nvme_path={path!r} is on the network file system {mount.kind!r}; a local disk is much faster."
                )
        drives = {os.stat(path).st_dev for path in paths}
        if len(drives) < len(paths):
            self.notes.append(
                f"The {len(paths)} directories of nvme_path are on {len(drives)} file system(s): "
                "several on one drive are no faster than one."
            )
        return paths if len(paths) > 1 else paths[0]

    def _disk_free(self, paths: tuple[str, ...]) -> int:
        """Bytes that files of equal size, one in each directory, can have together."""
        drives: dict[int, list[str]] = {}
        for path in paths:
            drives.setdefault(os.stat(path).st_dev, []).append(path)
        return len(paths) * min(self.machine.disk(on[0])[0] // len(on) for on in drives.values())

    def _nvme_budget(self, path: str | tuple[str, ...] | None, faster: int) -> int:
        if path is None:
            self.origins.setdefault("nvme_budget", "default: no nvme_path, two tiers only")
            return 0
        free = self._disk_free(paths_of(path))
        asked = self._asked("nvme_budget")
        if asked is None:
            budget = min(free // 2 // self.ranks, 8 * faster)
            self.origins["nvme_budget"] = (
                f"default: half of the {format_bytes(free)} free under nvme_path, at most 8 times the device and host budgets"
            )
            return self._positive("nvme_budget", budget, f"{format_bytes(free)} are free under nvme_path={path!r}")
        return self._within(
            "nvme_budget", asked.of(free), free, f"the {format_bytes(free)} free under nvme_path={path!r}"
        )

    def _usable_memory(self) -> int:
        available = self.memory.available
        return (available - max(GIB, available // 10)) // self.ranks

    def _limit_words(self) -> str:
        what = "the cgroup limit of" if self.memory.limit < self.memory.total else "the"
        return f"{what} {format_bytes(self.memory.limit)} of RAM"

    def _within(self, name: str, budget: int, whole: int, words: str) -> int:
        if budget > whole:
            raise ConfigError(
                f"{name} is {format_bytes(budget)}, more than {words}: give at most {format_bytes(whole)}."
            )
        return budget

    def _positive(self, name: str, budget: int, words: str) -> int:
        if budget < 16 * _MIB:
            raise ConfigError(
                f"No default for {name}: only {words}, which leaves less than 16 MiB after the margin. "
                f"Free some, or give {name} yourself."
            )
        return budget


def check_directory(path: str, machine: Machine) -> system.Mount | None:
    """Checks that a spill file can be made in ``path``; returns its mount. Raises ConfigError, leaves nothing behind."""
    shown = f"nvme_path={path!r}"
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise ConfigError(
            f"{shown} does not exist: create the directory, or name another one on a local disk."
        ) from None
    except OSError as error:
        raise ConfigError(f"{shown} cannot be looked at ({error.strerror}): name another directory.") from None
    if not stat.S_ISDIR(status.st_mode):
        raise ConfigError(f"{shown} is not a directory: name the directory in which the spill file may be made.")
    mount = machine.mount(path)
    if mount is not None and mount.kind in system.MEMORY_FILE_SYSTEMS:
        raise ConfigError(
            f"{shown} is on {mount.kind}, which is RAM and not a disk: name a directory on a disk, "
            "or leave nvme_path out and raise host_budget."
        )
    if not status.st_mode & stat.S_ISVTX and os.geteuid() not in (status.st_uid, 0):
        raise ConfigError(
            f"{shown} belongs to user {status.st_uid}, who may rename or remove files in it: "
            "name a directory of your own, or one with the sticky bit (chmod +t)."
        )
    read_only = mount is not None and mount.read_only
    if read_only or not os.access(path, os.W_OK | os.X_OK):
        why = "is on a read-only file system" if read_only else "is not writable for this user"
        raise ConfigError(f"{shown} {why}: change that, or name another directory.")
    return mount


def differences(first: Config, request: Request, asked_first: Request) -> list[str]:
    """What a second ``enable`` asks for that differs from what is in force, as "name: asked X, in force Y" lines."""
    found = []
    explicit = {name: value for name, value in request.values.items() if request.origins[name] == "argument"}
    for name, value in explicit.items():
        if asked_first.values.get(name) == value:
            continue
        current: Any = getattr(first, name)
        if name == "device":
            kind, index = value
            same = kind == first.device and index in (None, first.device_index)
            current = f"{first.device}:{first.device_index}"
        elif name == "nvme_path":
            paths = tuple(os.path.abspath(os.path.expanduser(path)) for path in paths_of(value))
            same = paths == paths_of(first.nvme_path)
        elif name in ("device_budget", "host_budget", "nvme_budget"):
            same = value.count == current
        else:
            same = value == current
        if not same:
            found.append(f"{name}: asked {_show(value)}, in force {current!r}")
    return found


def _show(value: Any) -> str:
    count, fraction = getattr(value, "count", None), getattr(value, "fraction", None)
    if isinstance(value, (str, bool, int, float)):
        return repr(value)
    if isinstance(count, int):
        return str(count)
    return str(fraction) if isinstance(fraction, float) else str(value)


def in_force(config: Config, reported: Mapping[str, Any]) -> Config:
    """``config`` with what the engine reports."""
    import dataclasses

    return dataclasses.replace(config, in_force=MappingProxyType(dict(reported)))
