"""What a program was predicted to move and wait for, what it did, and what would have helped: rules over statistics.

Pure: takes the mapping of :func:`tierpage.memory_stats`, gives numbers and sentences. Each rule speaks only when its
numbers say so. Seconds are of the last recurrence where a plan is in force, else since the start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tierpage.system import format_bytes

Number = int | float
Stats = Mapping[str, Number]

CAUSES = ("fault", "copy_wait", "map", "eviction_wait", "host")
LINKS = {
    "to_device": "into the device",
    "to_host": "out of the device",
    "nvme_read": "from the disk",
    "nvme_write": "to the disk",
}
_WAITED_LEAST = 0.05  # of the time: below this nothing is worth a change
_RECURRENCE = "recurrence."
_FACTOR_MOST = 100.0


def share(part: Number, whole: Number) -> float:
    """``part / whole``, 0 where there is no whole."""
    return float(part) / float(whole) if whole > 0 else 0.0


@dataclass(frozen=True)
class Measured:
    """Seconds and bytes of one stretch of a program. ``stalled`` is by cause; waits of several threads add up."""

    of: str
    elapsed: float
    waited: float
    stalled: Mapping[str, float] = field(default_factory=dict)
    link_seconds: Mapping[str, float] = field(default_factory=dict)
    link_bytes: Mapping[str, int] = field(default_factory=dict)

    @property
    def computing(self) -> float:
        """Seconds in which nobody waited for tierpage."""
        return max(self.elapsed - self.waited, 0.0)

    @property
    def busiest(self) -> str:
        """The link that was busy longest."""
        return max(LINKS, key=lambda link: self.link_seconds.get(link, 0.0))

    def part(self, *causes: str) -> float:
        """Share of all time that was waited for these causes."""
        return share(sum(self.stalled.get(cause, 0.0) for cause in causes), self.elapsed)


def measured(stats: Stats) -> Measured:
    """The stretch that the rules look at: the last recurrence if one was measured, else everything."""
    last = stats.get("recurrence.elapsed_seconds", 0.0) > 0
    prefix = _RECURRENCE if last else ""
    return Measured(
        of="the last recurrence" if last else "all so far",
        elapsed=stats.get(prefix + "elapsed_seconds", 0.0),
        waited=stats.get(prefix + "stall_seconds.total", 0.0),
        stalled={cause: stats.get(f"{prefix}stall_seconds.{cause}", 0.0) for cause in CAUSES},
        link_seconds={link: stats.get(f"{prefix}link_seconds.{link}", 0.0) for link in LINKS},
        link_bytes={link: int(stats.get(f"{prefix}link_bytes.{link}", 0)) for link in LINKS},
    )


def predicted_share(stats: Stats) -> float:
    """Share of the uses that came as predicted, of those for which there was a prediction."""
    predicted = stats.get("predictor.predicted", 0)
    return share(predicted, predicted + stats.get("predictor.mispredicted", 0))


def prefetch_shares(stats: Stats) -> dict[str, float]:
    """Shares, of the prefetches that have ended, that were used in time, while still on their way, and never."""
    ended = {kind: stats.get(f"prefetch.{kind}", 0) for kind in ("useful", "late", "wasted")}
    return {kind: share(count, sum(ended.values())) for kind, count in ended.items()}


def moved(stats: Stats, what: str) -> tuple[int, int] | None:
    """Bytes in one recurrence as (planned, measured) for "fetched" or "written"; None where either is unknown."""
    if not stats.get("plan.period_uses") or not stats.get("recurrence.uses"):
        return None
    # A look may come a few uses late: what was moved is brought to the length of the plan.
    scale = stats["plan.period_uses"] / stats["recurrence.uses"]
    return int(stats[f"plan.{what}_bytes"]), int(stats[f"recurrence.{what}_bytes"] * scale)


def comparison(stats: Stats) -> dict[str, Number | str]:
    """Predicted against measured as flat numbers, for the metadata of a trace. Shares are from 0 to 1."""
    now = measured(stats)
    row: dict[str, Number | str] = {"predicted_share": round(predicted_share(stats), 4)}
    row |= {f"prefetch_{kind}_share": round(value, 4) for kind, value in prefetch_shares(stats).items()}
    for what in ("fetched", "written"):
        pair = moved(stats, what)
        if pair is not None:
            row[f"planned_{what}_bytes"], row[f"measured_{what}_bytes"] = pair
    row |= {"times_of": now.of, "elapsed_seconds": now.elapsed, "waited_seconds": now.waited}
    row |= {f"waited_seconds_{cause}": now.stalled[cause] for cause in CAUSES}
    for link in LINKS:
        row[f"link_{link}_busy_seconds"], row[f"link_{link}_bytes"] = now.link_seconds[link], now.link_bytes[link]
    return row


def budget_missing_bytes(stats: Stats) -> int | None:
    """Bytes of device memory until nothing is moved any more; None where that is unknown.

    By the plan where there is one, else by the largest sum of live tensors.
    """
    if stats.get("plan.period_uses"):
        return max(int(stats["plan.whole_bytes"] - stats["plan.capacity_bytes"]), 0)
    live, budget = stats.get("live_bytes.peak"), stats.get("budget_bytes.device")
    return max(int(live - budget), 0) if live is not None and budget is not None else None


def device_budget_rule(stats: Stats, now: Measured) -> str | None:
    """More device memory, where transfers are waited for and more of it would end them."""
    missing = budget_missing_bytes(stats)
    if not missing or now.part("fault", "copy_wait", "eviction_wait") < _WAITED_LEAST:
        return None
    pair = moved(stats, "fetched")
    moves = f" instead of fetching {format_bytes(pair[0])} each recurrence" if pair and pair[0] else ""
    return (
        f"a device_budget larger by {format_bytes(missing)} would hold everything{moves}; any part of it saves its part"
    )


def batch_rule(stats: Stats, now: Measured) -> str | None:
    """More work for each transfer, where the link is busy longer than the program computes."""
    link = now.busiest
    busy = now.link_seconds.get(link, 0.0)
    if busy < 1.1 * now.computing or now.part("fault", "copy_wait", "eviction_wait") < 2 * _WAITED_LEAST:
        return None
    factor = busy / now.computing if now.computing > 0 else _FACTOR_MOST
    times = f"about {factor:.1f} times" if factor < _FACTOR_MOST else f"more than {_FACTOR_MOST:.0f} times"
    return (
        f"{times} the tokens in a step (batch, sequence, accumulated micro-batches) would hide the transfers: the link "
        f"{LINKS[link]} was busy {busy:.3f} s, all else took {now.computing:.3f} s"
    )


def prefetch_rule(stats: Stats, now: Measured) -> str | None:
    """Prefetching on, or further ahead, where the future is known and the link has time left."""
    issued = stats.get("prefetch.issued", 0)
    known = predicted_share(stats)
    if issued == 0:
        if known < 0.5 or now.part("fault") < 2 * _WAITED_LEAST:
            return None
        return f"prefetch=True would fetch ahead: {known:.0%} of the uses were predicted, nothing was prefetched"
    late = prefetch_shares(stats)["late"]
    idle = share(now.link_seconds.get("to_device", 0.0), now.elapsed) < 0.7
    if late < 0.3 or not idle or now.part("copy_wait") < _WAITED_LEAST:
        return None
    return (
        f"a larger prefetch: {late:.0%} of the prefetches came late while the link had time left. The window is the "
        "smaller of 8 frame_bytes_max and an eighth of device_budget"
    )


def prediction_rule(stats: Stats, now: Measured) -> str | None:
    """Hints, where the program does not repeat itself."""
    wasted = prefetch_shares(stats)["wasted"]
    if stats.get("prefetch.issued", 0) >= 100 and wasted >= 0.2:
        return (
            f"{wasted:.0%} of the prefetches left unused: the order of uses changes. Steps of few fixed shapes repeat "
            "better; tierpage.prefetch names what comes next"
        )
    known = stats.get("predictor.predicted", 0) + stats.get("predictor.mispredicted", 0)
    if known < 1000 or predicted_share(stats) >= 0.5 or now.part("fault") < 2 * _WAITED_LEAST:
        return None
    return (
        f"only {predicted_share(stats):.0%} of the uses came as predicted: steps of few fixed shapes repeat better; "
        "tierpage.prefetch names what comes next"
    )


def host_budget_rule(stats: Stats, now: Measured) -> str | None:
    """More RAM, where the disk is in the way."""
    busy = max(now.link_seconds.get("nvme_read", 0.0), now.link_seconds.get("nvme_write", 0.0))
    on_disk = stats.get("resident_bytes.nvme.current", 0)
    if share(busy, now.elapsed) < 2 * _WAITED_LEAST or share(now.waited, now.elapsed) < _WAITED_LEAST or on_disk <= 0:
        return None
    return f"a host_budget larger by {format_bytes(on_disk)} would keep the disk out: it was busy {busy:.3f} s"


def map_rule(stats: Stats, now: Measured) -> str | None:
    """Larger frames, where making and mapping them is waited for."""
    if now.part("map") < _WAITED_LEAST or share(now.stalled.get("map", 0.0), now.waited) < 0.2:
        return None
    return (
        f"{now.stalled['map']:.3f} s went to frames that were created and mapped, which costs the same whatever their "
        "size: a larger frame_bytes_max, or shapes that repeat, so that freed memory is used again"
    )


def host_rule(stats: Stats, now: Measured) -> str | None:
    """A free processor, where tierpage's own side is waited for."""
    if now.part("host") < _WAITED_LEAST or share(now.stalled.get("host", 0.0), now.waited) < 0.3:
        return None
    return (
        f"{now.stalled['host']:.3f} s went to tierpage's own threads and plans: leave it a processor of its own (fewer "
        "data loader workers), or page fewer, larger tensors (min_paged_bytes)"
    )


RULES: tuple[Callable[[Stats, Measured], str | None], ...] = (
    device_budget_rule,
    batch_rule,
    prefetch_rule,
    prediction_rule,
    host_budget_rule,
    map_rule,
    host_rule,
)


def advise(stats: Stats) -> list[str]:
    """Sentences on what would have helped, each with its numbers; empty where nothing stands out."""
    now = measured(stats)
    if share(now.waited, now.elapsed) < _WAITED_LEAST:
        return []
    return [line for line in (rule(stats, now) for rule in RULES) if line is not None]


def verdict(stats: Stats) -> str:
    """One or two sentences: how much was waited, mostly for what, and the first of what would have helped."""
    now = measured(stats)
    if now.elapsed <= 0:
        return "Nothing was measured."
    part = share(now.waited, now.elapsed)
    text = f"Waited {now.waited:.3f} s of {now.elapsed:.3f} s ({part:.1%}; {now.of})"
    if part < _WAITED_LEAST:
        return f"{text}: too little to be worth a change."
    text += f", mostly for {max(CAUSES, key=lambda cause: now.stalled.get(cause, 0.0))}"
    advised = advise(stats)
    return (
        f"{text}. What would have helped: {advised[0]}."
        if advised
        else f"{text}. No setting stands out that would have helped."
    )


def main_cause(row: Stats) -> str:
    """The cause that one operator waited longest for; ``row`` has its "seconds.<cause>"."""
    return max(CAUSES, key=lambda cause: row.get(f"seconds.{cause}", 0.0))


def help_for(row: Stats) -> str:
    """A few words on what would have helped one operator."""
    cause = main_cause(row)
    if cause == "fault":
        predicted = share(row.get("predicted_bytes", 0), row.get("bytes", 0)) >= 0.5
        return "room to prefetch into" if predicted else "a repeated order, or tierpage.prefetch"
    return {
        "copy_wait": "an earlier prefetch, or more work for each transfer",
        "map": "larger frames, shapes that repeat",
        "eviction_wait": "a larger device_budget",
        "host": "a free processor",
    }[cause]
