"""Sizes as people write them: 8589934592, "8GiB", "8GB", "500 MiB", 0.5, "0.5", "50%"; rates: "200GB/day"."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from tierpage.errors import ConfigError

_UNITS = {"b": 1}
for _power, _letter in enumerate("kmgt", start=1):
    _UNITS[_letter + "b"] = 1000**_power
    _UNITS[_letter + "ib"] = 1024**_power
_PATTERN = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*([a-z%]*)", re.IGNORECASE)
_LARGEST = 1 << 56  # 64 PiB: nothing that exists is larger
_FORMS = 'bytes as an int, text such as "8GiB" or "8GB", or a fraction such as 0.5 or "50%"'


@dataclass(frozen=True)
class Size:
    """Either ``count`` bytes or a ``fraction`` (above 0, at most 1) of something known later."""

    count: int | None = None
    fraction: float | None = None

    def of(self, whole: int) -> int:
        """Bytes, taking ``whole`` bytes as what the fraction refers to."""
        if self.count is not None:
            return self.count
        assert self.fraction is not None
        return int(self.fraction * whole)


_PERIODS = {"hour": 3600, "day": 86400, "week": 7 * 86400}


@dataclass(frozen=True)
class Rate:
    """``count`` bytes in each ``seconds``."""

    count: int
    seconds: int

    def __str__(self) -> str:
        return f"{self.count}B/{next(name for name, seconds in _PERIODS.items() if seconds == self.seconds)}"


def parse_rate(value: object, name: str) -> Rate | None:
    """Reads "200GB/day", "10GiB/hour" or "1TB/week"; "none" is None. Raises ConfigError that names ``name`` and the value."""
    if isinstance(value, Rate):
        return value
    if not isinstance(value, str):
        raise ConfigError(f'{name}={value!r} is not a rate: give text such as "200GB/day".')
    if value.strip().lower() in ("", "none"):
        return None
    size, slash, period = value.partition("/")
    seconds = _PERIODS.get(period.strip().lower())
    if not slash or seconds is None:
        raise ConfigError(f'{name}={value!r} is not a rate: give a size "/day", "/hour" or "/week", or "none".')
    return Rate(parse_size(size, name, fraction_allowed=False).of(0), seconds)


def parse_size(value: object, name: str = "size", *, fraction_allowed: bool = True) -> Size:
    """Reads bytes, text with a unit, or a fraction. GiB is 1024^3 bytes, GB is 1000^3; case does not matter.

    An int is bytes; a float is a fraction above 0 and at most 1. Raises ConfigError that names ``name`` and the value.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ConfigError(f"{name}={value!r} is not a size: give {_FORMS}.")
    if isinstance(value, str):
        return _parse_text(value, name, fraction_allowed)
    if isinstance(value, float):
        return _fraction(value, value, name, fraction_allowed)
    return _bytes(value, value, name)


def _parse_text(text: str, name: str, fraction_allowed: bool) -> Size:
    found = _PATTERN.fullmatch(text.strip())
    if found is None:
        raise ConfigError(f"{name}={text!r} is not a size: give {_FORMS}.")
    digits, unit = found.group(1), found.group(2).lower()
    number = float(digits)
    if unit == "%":
        return _fraction(number / 100, text, name, fraction_allowed)
    if not unit:
        is_integer = re.fullmatch(r"[+-]?\d+", digits) is not None
        return _bytes(int(digits), text, name) if is_integer else _fraction(number, text, name, fraction_allowed)
    if unit in ("k", "m", "g", "t"):
        letter = unit.upper()
        raise ConfigError(f"{name}={text!r} is ambiguous: write {digits}{letter}iB (1024-based) or {digits}{letter}B.")
    if unit not in _UNITS:
        raise ConfigError(
            f"{name}={text!r} has the unknown unit {found.group(2)!r}: use B, kB, MB, GB, TB, KiB, MiB, GiB or TiB."
        )
    if not math.isfinite(number):
        raise ConfigError(f"{name}={text!r} is not a finite size: give {_FORMS}.")
    return _bytes(round(number * _UNITS[unit]), text, name)


def _bytes(count: int, shown: object, name: str) -> Size:
    if count < 0:
        raise ConfigError(f"{name}={shown!r} is negative: give {_FORMS}.")
    if count > _LARGEST:
        raise ConfigError(f"{name}={shown!r} is {count} bytes, more than 64 PiB: check the unit.")
    return Size(count=count)


def _fraction(number: float, shown: object, name: str, allowed: bool) -> Size:
    if not allowed:
        raise ConfigError(
            f'{name}={shown!r} is a fraction, but this setting is in bytes: give an int or text such as "1MiB".'
        )
    if not (math.isfinite(number) and 0 < number <= 1):
        raise ConfigError(
            f"{name}={shown!r} is not a fraction above 0 and at most 1: bytes are given as an int or with a unit."
        )
    return Size(fraction=number)
