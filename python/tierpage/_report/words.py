"""Numbers as the page shows them."""

from __future__ import annotations

from tierpage.advice import LINKS
from tierpage.system import format_bytes

TIER_NAMES = {"device": "device", "host": "RAM", "nvme": "NVMe"}
UNKNOWN = "unknown"

# The words of advice, at the beginning of a row.
LINK_NAMES = {link: words[0].upper() + words[1:] for link, words in LINKS.items()}


def size(count: float | None) -> str:
    """Bytes with a unit."""
    return UNKNOWN if count is None else format_bytes(count)


def count(number: float) -> str:
    """A count, its thousands apart."""
    return f"{number:,.0f}".replace(",", "\u202f")


def percent(share: float) -> str:
    """A share from 0 to 1."""
    return f"{share:.1%}" if 0 < share < 0.1 else f"{share:.0%}"


def seconds(time: float) -> str:
    """A time with the unit that suits it."""
    if time == 0 or time >= 0.9995:
        return f"{time:.2f} s" if time < 1000 else f"{count(time)} s"
    return f"{time * 1e3:.3g} ms" if time >= 0.9995e-3 else f"{time * 1e6:.3g} us"


def rate(bytes_: float, time: float) -> str:
    """GB/s, as everywhere in tierpage."""
    return f"{bytes_ / time / 1e9:.2f}" if time > 0 else "-"
