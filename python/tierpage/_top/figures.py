"""From two looks at a program to figures: what is where, and what went on between the two. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tierpage._report.reading import Placed
from tierpage._top.reading import Look, Waited
from tierpage.advice import CAUSES, LINKS
from tierpage.memory import TIERS

WARM_SECONDS_MOST = 60.0


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
    idle_seconds: float  # since the last look that saw it waited for; 0: this one
    last_wait_seen: bool  # False: no look has; `idle_seconds` is since the first look, and it may be more

    @property
    def heat(self) -> str | None:
        """ "hot", "warm" or "cold" by ``idle_seconds``; None: it has not been looked at for long enough."""
        return _heat(self.last_wait_seen, self.idle_seconds)


@dataclass(frozen=True)
class TagPlace:
    """Where the live tensors of a tag lie. Bytes count whole pages, but for ``live_bytes``, which were asked for; what
    has two copies is in two tiers."""

    name: str
    live_bytes: float
    device_bytes: float
    host_bytes: float
    nvme_bytes: float
    idle_seconds: float  # since the last look that saw a tensor of it used or made; 0: this one
    last_use_seen: bool  # False: no look has; `idle_seconds` is since the first look, and it may be more

    @property
    def heat(self) -> str | None:
        """As that of :class:`Waiting`, by use."""
        return _heat(self.last_use_seen, self.idle_seconds)


def _heat(seen: bool, idle_seconds: float) -> str | None:
    if seen and idle_seconds == 0:
        return "hot"
    if idle_seconds > WARM_SECONDS_MOST:
        return "cold"
    return "warm" if seen else None


@dataclass(frozen=True)
class History:
    """What is kept of all looks at a program: when the first was, and the last that saw each name waited for or used.

    Times are the program's ``at_seconds``. ``enabled_seconds`` is how long it had paged at the last look that it answered.
    """

    began: float
    enabled_seconds: float
    seen_at: Mapping[str, float] = field(default_factory=dict)  # by "tag", "operator" or "use", and its name


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
    tag_places: tuple[TagPlace, ...]  # most bytes first
    history: History | None  # for the next look; None: the program has never answered

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
            "tags": [{**vars(row), "heat": row.heat} for row in self.tags],
            "tag_places": [{**vars(row), "heat": row.heat} for row in self.tag_places],
            "operators": [{**vars(row), "heat": row.heat} for row in self.operators],
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


def figures(now: Look, before: Look | None, history: History | None = None) -> Figures:
    """What ``now`` says, and what went on since ``before``, a look at the same program; None: there was none.

    ``history`` is that of the figures before.
    """
    seconds = 0.0 if before is None or before.problem or now.problem else now.at_seconds - before.at_seconds
    # A program that was switched off and on again counts anew.
    if before is None or seconds <= 0 or now.stats["elapsed_seconds"] < before.stats["elapsed_seconds"]:
        before, seconds = None, 0.0
    history = _history(now, before, history)

    def since(name: str) -> float:
        return 0.0 if before is None else max(0.0, now.stats[name] - before.stats[name]) / seconds

    stalled = {cause: since(f"stall_seconds.{cause}") for cause in (*CAUSES, "total")}
    # Waits of several threads add up, and a wait is counted when it ends, however long it was. All causes shrink alike,
    # so that they still add up to the total.
    most = max(1.0, stalled["total"], sum(stalled[cause] for cause in CAUSES))

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
        links={link: Link(since(f"link_bytes.{link}"), min(1.0, since(f"link_seconds.{link}"))) for link in LINKS},
        stalled_shares={cause: seconds_ / most for cause, seconds_ in stalled.items()},
        operators=_waiting("operator", now, before, seconds, history),
        tags=_waiting("tag", now, before, seconds, history),
        tag_places=_placed(now, history),
        history=history,
    )


def _rows(kind: str, look: Look) -> tuple[Waited, ...]:
    return look.tags if kind == "tag" else look.operators


def _grown(row: Waited, before: Iterable[Waited]) -> tuple[float, float]:
    """Bytes and seconds that were waited since. Nothing where the program has reset them."""
    old = next((other for other in before if other.name == row.name), None)
    bytes_, waited = (row.bytes - old.bytes, row.seconds - old.seconds) if old else (row.bytes, row.seconds)
    return (bytes_, waited) if bytes_ >= 0 and waited >= 0 else (0.0, 0.0)


def _history(now: Look, before: Look | None, history: History | None) -> History | None:
    if now.problem:
        return history
    enabled = now.stats["elapsed_seconds"]
    if history is None or enabled < history.enabled_seconds:
        history = History(now.at_seconds, enabled)
    seen_at: dict[str, float] = {}
    for kind in ("tag", "operator"):
        for row in _rows(kind, now):
            key = f"{kind} {row.name}"
            if before is not None and any(_grown(row, _rows(kind, before))):
                seen_at[key] = now.at_seconds
            elif key in history.seen_at:
                seen_at[key] = history.seen_at[key]
    known = {} if before is None else {row.name: (row.uses, row.live) for row in before.tag_places}
    for place in now.tag_places:
        key = f"use {place.name}"
        if before is not None and known.get(place.name) != (place.uses, place.live):
            seen_at[key] = now.at_seconds
        elif key in history.seen_at:
            seen_at[key] = history.seen_at[key]
    return History(history.began, enabled, seen_at)


def _placed(now: Look, history: History | None) -> tuple[TagPlace, ...]:
    def placed(row: Placed) -> TagPlace:
        last = history.seen_at.get(f"use {row.name}") if history is not None else None
        began = history.began if history is not None else now.at_seconds
        idle = now.at_seconds - (began if last is None else last)
        return TagPlace(row.name, row.live, row.device, row.host, row.nvme, idle, last is not None)

    return tuple(placed(row) for row in now.tag_places)


def _waiting(kind: str, now: Look, before: Look | None, seconds: float, history: History | None) -> tuple[Waiting, ...]:
    """Those who wait most now come first, then those who have waited longest."""
    if history is None:  # the program has never answered
        return ()
    rows = []
    for row in _rows(kind, now):
        bytes_, waited = _grown(row, _rows(kind, before)) if before is not None else (0.0, 0.0)
        rate, share = (bytes_ / seconds, min(1.0, waited / seconds)) if seconds > 0 else (0.0, 0.0)
        cause = max(row.causes, key=row.causes.__getitem__)
        last = history.seen_at.get(f"{kind} {row.name}")
        idle = now.at_seconds - (history.began if last is None else last)
        rows.append(Waiting(row.name, share, rate, row.seconds, cause, idle, last is not None))
    return tuple(sorted(rows, key=lambda row: (-row.stalled_share, -row.stalled_seconds, row.name)))
