"""Settings: their names, defaults, limits, the TIERPAGE_CONF variable, and where each value in force came from."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

from tierpage.errors import ConfigError
from tierpage.sizes import Rate, Size, parse_rate, parse_size

__all__ = ["Config", "parse_environment", "parse_size"]

ENVIRONMENT_NAME = "TIERPAGE_CONF"
COMMAND_LINE = "command line"
MIB = 1024**2


@dataclass(frozen=True)
class Config:
    """The settings in force. Sizes are in bytes; 0 in an experimental size means "chosen by the engine".

    ``origins[name]`` says where a value came from: "argument", "command line" (of ``tierpage run``), "TIERPAGE_CONF" or
    "default: ..." with the rule.
    ``in_force`` holds what the engine reports: the device's name, the storage in use, the sizes that it chose.
    """

    device: str
    device_index: int
    device_budget: int
    host_budget: int
    nvme_budget: int
    nvme_path: str | tuple[str, ...] | None  # one directory, or one on each of several drives
    min_paged_bytes: int = MIB
    scope: str = "all"
    paranoid: bool = False
    verify: str = "read"
    storage_backend: str = "auto"
    policy: str = "auto"
    prefetch: bool = True
    granule_bytes: int = 0
    frame_bytes_max: int = 0
    range_bytes: int = 0
    staging_slot_bytes: int = 4 * MIB
    staging_slots: int = 16
    io_workers: int = 8
    direct_io: bool = True
    nvme_write_budget: Rate | None = None
    stall_report_seconds: float = 30.0
    encrypt: bool = False
    trace_events_max: int = 1 << 18
    list_run_fraction: float = 0.0625
    defer_updates: bool = False
    overflow: str = "auto"
    compress: str = "auto"
    launch_guard: bool = True
    top: bool = True
    origins: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    in_force: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    notes: tuple[str, ...] = field(default=(), compare=False, repr=False)

    def engine_options(self) -> dict[str, object]:
        """The options of ``_C.Runtime``, all but ``storage``, which :mod:`tierpage.storage` chooses."""
        rate = self.nvme_write_budget
        return {
            **{name: getattr(self, name) for name, setting in SETTINGS.items() if setting.in_engine},
            "device_index": self.device_index,
            "nvme_path": list(paths_of(self.nvme_path)),
            "nvme_write_budget": None if rate is None else (rate.count, rate.seconds),
        }

    def environment(self) -> str:
        """The line for TIERPAGE_CONF that gives these settings; defaults are left out."""
        shown = []
        for name in SETTINGS:
            if not self.origins.get(name, "default").startswith("default"):
                value = f"{self.device}:{self.device_index}" if name == "device" else getattr(self, name)
                value = f"[{','.join(value)}]" if isinstance(value, tuple) else value
                shown.append(f"{name}:{'' if value is None else value}")
        return ",".join(shown)


Parser = Callable[[object, str], Any]


@dataclass(frozen=True)
class Setting:
    """What a user may give: ``parse(value, name)`` checks a value, or its text, and raises ConfigError."""

    parse: Parser
    words: tuple[str, ...] = ()  # that it may be; empty: a value
    in_engine: bool = True  # whether the engine has an option of this name


def _parse_bytes(minimum: int, *, zero: bool = False, power_of_two: bool = False, multiple: int = 1) -> Parser:
    def parse(value: object, name: str) -> int:
        count = parse_size(value, name, fraction_allowed=False).of(0)
        if count == 0 and zero:
            return 0
        if count < minimum:
            raise ConfigError(f"{name}={value!r} is below its minimum of {minimum} bytes.")
        if power_of_two and count & (count - 1):
            raise ConfigError(
                f"{name}={value!r} is not a power of two: {1 << (count.bit_length() - 1)} is the next below."
            )
        if count % multiple:
            raise ConfigError(f"{name}={value!r} is not a multiple of {multiple} bytes.")
        return count

    return parse


def _parse_count(minimum: int, maximum: int) -> Parser:
    def parse(value: object, name: str) -> int:
        text = str(value).strip()
        if isinstance(value, (bool, float)) or not text.lstrip("+-").isdigit():
            raise ConfigError(f"{name}={value!r} is not a whole number: give one from {minimum} to {maximum}.")
        if not minimum <= int(text) <= maximum:
            raise ConfigError(f"{name}={value!r} is out of range: give a whole number from {minimum} to {maximum}.")
        return int(text)

    return parse


def _choice(*words: str, in_engine: bool = True) -> Setting:
    def parse(value: object, name: str) -> str:
        if value not in words:
            raise ConfigError(f"{name}={value!r} is not one of {', '.join(map(repr, words))}.{_close(value, words)}")
        return str(value)

    return Setting(parse, words, in_engine)


def _parse_bool(value: object, name: str) -> bool:
    known = {"true": True, "1": True, "on": True, "yes": True, "false": False, "0": False, "off": False, "no": False}
    result = value if isinstance(value, bool) else known.get(value.strip().lower()) if isinstance(value, str) else None
    if result is None:
        raise ConfigError(f"{name}={value!r} is not a switch: give True or False.")
    return result


def _parse_seconds(value: object, name: str) -> float:
    try:
        seconds = float(value) if not isinstance(value, bool) else -1.0  # type: ignore[arg-type]
    except (TypeError, ValueError):
        seconds = -1.0
    if not 0 <= seconds <= 1e6:
        raise ConfigError(f"{name}={value!r} is not a time: give seconds, 0 for never.")
    return seconds


def _parse_share(value: object, name: str) -> float:
    fraction = parse_size(value, name).fraction if isinstance(value, (float, str)) else None
    if fraction is None:
        raise ConfigError(f"{name}={value!r} is not a fraction: give a float above 0 and at most 1, such as 0.5.")
    return fraction


def paths_of(value: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The directories in a value of ``nvme_path``; none where there is no NVMe tier."""
    return value if isinstance(value, tuple) else (value,) if value else ()


def _parse_paths(value: object, name: str) -> str | tuple[str, ...]:
    """One directory, or several as a list or tuple, in text as "[/a,/b]". A list of one is that one."""
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        value = [part.strip() for part in value[1:-1].split(",")]
    if not isinstance(value, (list, tuple)):
        return _parse_path(value, name)
    paths = tuple(_parse_path(part, name) for part in value)
    if not paths or not all(paths):
        raise ConfigError(f"{name}={value!r} holds no directory: give one, or one on each drive.")
    real = [os.path.realpath(os.path.expanduser(path)) for path in paths]
    if len(set(real)) < len(real):
        raise ConfigError(f"{name}={value!r} names a directory twice: give one on each drive.")
    return paths if len(paths) > 1 else paths[0]


def _parse_path(value: object, name: str) -> str:
    try:
        path = os.fspath(value)  # type: ignore[call-overload]
    except TypeError:
        path = None
    if not isinstance(path, str):
        raise ConfigError(f"{name}={value!r} is not a directory name: give text, a pathlib.Path, or a list of them.")
    if "\0" in path:
        raise ConfigError(f"{name}={value!r} holds a null character, which no directory name can.")
    return path


def _parse_device(value: object, name: str) -> tuple[str, int | None]:
    kind, _, index = str(value).partition(":")
    valid_index = index.isdigit() or not (index or str(value).endswith(":"))
    if kind not in ("cpu", "cuda") or not valid_index or (kind == "cpu" and index not in ("", "0")):
        raise ConfigError(
            f'{name}={str(value)!r} is not a device that can be paged: give "cpu", "cuda" or "cuda:<index>".'
        )
    return kind, int(index) if index else None


def _parse_budget(value: object, name: str) -> Size:
    size = parse_size(value, name)
    if size.count is not None and size.count < MIB:
        raise ConfigError(
            f'{name}={value!r} is {size.count} bytes, below the minimum of 1 MiB; a bare number is bytes, write "8GiB".'
        )
    return size


# Every setting that a user can give, by the name of its keyword and of its TIERPAGE_CONF key. docs/tuning.md has a
# section for each, which the repository's tests/tidy.py compares, and csrc/python/options.cpp the engine's side of most,
# which tests/python/test_borders.py does.
SETTINGS: dict[str, Setting] = {
    "nvme_path": Setting(_parse_paths),
    "device": Setting(_parse_device),
    "device_budget": Setting(_parse_budget),
    "host_budget": Setting(_parse_budget),
    "nvme_budget": Setting(_parse_budget),
    "min_paged_bytes": Setting(_parse_bytes(1)),
    "scope": _choice("all", "explicit"),
    "paranoid": Setting(_parse_bool),
    "verify": _choice("read", "full", "off"),
    "storage_backend": _choice("auto", "direct", "kvikio", in_engine=False),
    "policy": _choice("auto", "clock"),
    "prefetch": Setting(_parse_bool),
    "granule_bytes": Setting(_parse_bytes(4096, zero=True, power_of_two=True)),
    "frame_bytes_max": Setting(_parse_bytes(4096, zero=True, power_of_two=True)),
    "range_bytes": Setting(_parse_bytes(64 * MIB, zero=True)),
    "staging_slot_bytes": Setting(_parse_bytes(4096, multiple=4096)),
    "staging_slots": Setting(_parse_count(1, 1024)),
    "io_workers": Setting(_parse_count(4, 256)),
    "direct_io": Setting(_parse_bool),
    "nvme_write_budget": Setting(parse_rate),
    "encrypt": Setting(_parse_bool),
    "stall_report_seconds": Setting(_parse_seconds),
    "trace_events_max": Setting(_parse_count(0, 1 << 28)),
    "list_run_fraction": Setting(_parse_share),
    "defer_updates": Setting(_parse_bool, in_engine=False),
    "overflow": _choice("auto", "off"),
    "compress": _choice("auto", "off", "on"),
    "launch_guard": Setting(_parse_bool),
    "top": Setting(_parse_bool, in_engine=False),
}


def _close(value: object, known: Mapping[str, object] | tuple[str, ...]) -> str:
    matches = difflib.get_close_matches(str(value), list(known), n=2, cutoff=0.5)
    return f" Did you mean {' or '.join(map(repr, matches))}?" if matches else ""


def parse_environment(text: str | None) -> dict[str, str]:
    """Reads ``key:value,key:[value,value]`` (torch's grammar). Raises ConfigError on an unknown, repeated or empty key."""
    values: dict[str, str] = {}
    for item in re.split(r",(?![^\[\]]*\])", text or ""):  # not at commas inside of brackets
        if not item.strip():
            continue
        key, colon, value = (part.strip() for part in item.partition(":"))
        if not colon:
            raise ConfigError(f"{ENVIRONMENT_NAME} holds {item.strip()!r} without a colon: write key:value,key:value.")
        if key not in SETTINGS:
            hint = _close(key, SETTINGS) or f" Known keys: {', '.join(SETTINGS)}."
            raise ConfigError(f"{ENVIRONMENT_NAME} holds the unknown key {key!r}.{hint}")
        if key in values:
            raise ConfigError(f"{ENVIRONMENT_NAME} gives {key!r} twice: keep one.")
        values[key] = value
    return values


@dataclass(frozen=True)
class Request:
    """What was asked for: parsed values by setting name, and where each came from."""

    values: Mapping[str, Any]
    origins: Mapping[str, str]
    asker: str = "argument"  # the origin of what is neither a default nor from the environment


def parse_request(arguments: Mapping[str, object], environment: str | None, asker: str = "argument") -> Request:
    """Parses and checks everything that needs no machine. An argument that is not None wins over the environment."""
    for name in arguments:
        if name not in SETTINGS:
            hint = _close(name, SETTINGS) or " docs/tuning.md lists every setting."
            raise ConfigError(f"tierpage.enable() has no setting {name!r}.{hint}")
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for name, text in parse_environment(environment).items():
        values[name] = SETTINGS[name].parse(text, f"{name} (from {ENVIRONMENT_NAME})")
        origins[name] = ENVIRONMENT_NAME
    for name, value in arguments.items():
        if value is not None:
            values[name] = SETTINGS[name].parse(value, name)
            origins[name] = asker
    return Request(MappingProxyType(values), MappingProxyType(origins), asker)


def setting_names() -> list[str]:
    """Names of the fields of Config that users can set."""
    return [entry.name for entry in fields(Config) if entry.name in SETTINGS]
