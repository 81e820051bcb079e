"""From two looks at a program to figures: what is where, and what went on between the two. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tierpage._top.reading import Look, Waited
from tierpage.advice import CAUSES, LINKS
from tierpage.memory import TIERS


@dataclass(frozen=True)
class Tier:
    """Bytes in one tier. ``budget_bytes`` is 0 where the program has no such tier."""

    used_bytes: float
    peak_bytes: float
    budget_bytes: float


@dataclass(frozen=True)
class Link:
    """What one link did between the looks: bytes a second, and the share of the time in which it was busy."""

    bytes_per_second: float
    busy_share: float


@dataclass(frozen=True)
class Waiting:
    """Who waited: share of the time and bytes a second between the looks, seconds since ``enable``, the main cause."""

    name: str
    stalled_share: float
    bytes_per_second: float
    stalled_seconds: float
    cause: str


@dataclass(frozen=True)
class Figures:
    """One program. ``seconds`` is the time between the looks, 0 where there was one only: then nothing has a rate."""

    look: Look
    seconds: float
    tiers: dict[str, Tier]
    links: dict[str, Link]
    stalled_shares: dict[str, float]  # by cause; and "total"
    operators: tuple[Waiting, ...]
    tags: tuple[Waiting, ...]

    def level(self, name: str) -> float:
        """A statistic as it is now."""
        return float(self.look.stats[name])

    def as_json(self) -> dict[str, Any]:
        """The same as plain values. A program that said nothing has a ``problem`` and no figures."""
        look = self.look
        who: dict[str, Any] = {"pid": look.process, "problem": look.problem or None}
        if look.problem:
            return who
        return {
            **who,
            "program": look.program,
            "version": look.version,
            "device": look.device,
            "device_name": look.device_name,
            "enabled_seconds": self.level("elapsed_seconds"),
            "interval_seconds": self.seconds,
            "tiers": {name: vars(tier) for name, tier in self.tiers.items()},
            "links": {name: vars(link) for name, link in self.links.items()},
            "stalled_shares": self.stalled_shares,
            "tags": [vars(row) for row in self.tags],
            "operators": [vars(row) for row in self.operators],
            **{name: int(self.level(key)) for name, key in _COUNTS.items()},
        }


_COUNTS = {
    "live_bytes": "live_bytes.current",
    "pinned_bytes": "pinned_bytes.current",
    "dirty_bytes": "dirty_bytes.current",
    "faults": "faults.count",
    "ooms": "num_ooms",
    "storage_errors": "storage_errors.count",
    "stuck_transfers": "stuck_transfers.current",
}


def figures(now: Look, before: Look | None) -> Figures:
    """What ``now`` says, and what went on since ``before``, a look at the same program; None: there was none."""
    seconds = 0.0 if before is None or before.problem or now.problem else now.at_seconds - before.at_seconds
    # A program that was switched off and on again counts anew.
    if before is None or seconds <= 0 or now.stats["elapsed_seconds"] < before.stats["elapsed_seconds"]:
        before, seconds = None, 0.0

    def since(name: str) -> float:
        return 0.0 if before is None else max(0.0, now.stats[name] - before.stats[name]) / seconds

    def share(name: str) -> float:
        # Waits of several threads add up, and a wait is counted when it ends, however long it was.
        return min(1.0, since(name))

    return Figures(
        look=now,
        seconds=seconds,
        tiers={
            tier: Tier(
                now.stats[f"resident_bytes.{tier}.current"],
                now.stats[f"resident_bytes.{tier}.peak"],
                now.stats[f"budget_bytes.{tier}"],
            )
            for tier in TIERS
        },
        links={link: Link(since(f"link_bytes.{link}"), share(f"link_seconds.{link}")) for link in LINKS},
        stalled_shares={cause: share(f"stall_seconds.{cause}") for cause in (*CAUSES, "total")},
        operators=_waiting(now.operators, before.operators if before else None, seconds),
        tags=_waiting(now.tags, before.tags if before else None, seconds),
    )


def _waiting(now: Iterable[Waited], before: Iterable[Waited] | None, seconds: float) -> tuple[Waiting, ...]:
    """Those who wait most now come first, then those who have waited longest."""
    known = {row.name: row for row in before or ()}
    rows = []
    for row in now:
        old = known.get(row.name)
        bytes_, waited = (row.bytes - old.bytes, row.seconds - old.seconds) if old else (row.bytes, row.seconds)
        if before is None or bytes_ < 0 or waited < 0:  # the first look, or the program has reset them
            bytes_, waited = 0.0, 0.0
        rate, share = (bytes_ / seconds, min(1.0, waited / seconds)) if seconds > 0 else (0.0, 0.0)
        rows.append(Waiting(row.name, share, rate, row.seconds, max(CAUSES, key=lambda cause: row.causes[cause])))
    return tuple(sorted(rows, key=lambda row: (-row.stalled_share, -row.stalled_seconds, row.name)))
