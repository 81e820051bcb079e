"""Lays the page out. It needs nothing but itself: no script, no network, and a policy that forbids both."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from tierpage import advice
from tierpage._report import aggregating, timeline, words
from tierpage._report.markup import Markup, element, joined, raw_style, table
from tierpage._report.reading import Stats, Trace, Wait
from tierpage._report.style import STYLE
from tierpage.advice import CAUSES, LINKS, share
from tierpage.memory import TIERS

_ROWS = 20
_CAUSE_HELP = {
    "eviction_wait": "no frame was free: a larger device_budget",
    "fault": "content was being copied, and nobody had begun before: a repeated order, tierpage.prefetch",
    "copy_wait": "a copy was under way, but late: more work for each transfer, an earlier prefetch",
    "map": "a frame was being made: larger frames, shapes that repeat",
    "host": "tierpage's own threads: a free processor",
}


def page(trace: Trace, name: str) -> str:
    """The whole page for a trace; ``name`` is that of its file."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_policy()),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", f"tierpage: {name}"),
        raw_style(STYLE),
    )
    line = aggregating.time_line(trace)
    parts = [element("h1", f"tierpage: {name}"), *_verdict(trace), _cards(trace, line)]
    parts += [element("h2", "Time line"), *_time_line(trace, line)]
    parts += [element("h2", "Tiers and links"), *_tiers_and_links(trace)]
    parts += [element("h2", "Stalls"), *_stalls(trace, line)]
    parts += [element("h2", "What moved most"), *_what_moved(trace)]
    parts += [element("h2", "What this page does not know"), *_unknown(trace)]
    return "<!doctype html>\n" + element("html", head, element("body", element("main", *parts)), lang="en") + "\n"


def _policy() -> str:
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def _verdict(trace: Trace) -> list[Markup]:
    if trace.stats is None:
        return [
            element(
                "p",
                "The trace has no totals: what stands here counts its events only. tierpage.export_trace of this version "
                "writes them.",
                class_="verdict",
            )
        ]
    advised = advice.advise(trace.stats)
    parts = [element("p", advice.verdict(trace.stats), class_="verdict")]
    if len(advised) > 1:
        parts += [element("h3", "What would have helped besides")]
        parts += [element("ul", *(element("li", sentence) for sentence in advised[1:]))]
    return parts


def _cards(trace: Trace, line: aggregating.TimeLine | None) -> Markup:
    stats = trace.stats
    cards: list[tuple[str, str, str]] = []
    if stats is not None:
        elapsed, stalled = stats["elapsed_seconds"], stats["stall_seconds.total"]
        cards.append(("time", words.seconds(elapsed), "since enable, or since the totals were last reset"))
        cards.append(("device", trace.device or words.UNKNOWN, ""))
        budgets = _budgets(stats)
        cards += [(f"{words.TIER_NAMES[tier]} budget", words.size(budget), "") for tier, budget in budgets.items()]
        moved: Mapping[str, float] = {link: stats[f"link_bytes.{link}"] for link in LINKS}
        cards += [(advice.LINKS[link], words.size(size), "") for link, size in moved.items()]
        longest = (
            f"{advice.share(stalled, elapsed):.1%} of the time; longest {words.seconds(stats['stall_seconds.max'])}"
        )
        cards.append(("stalled", words.seconds(stalled), longest))
        faults = words.count(stats["faults.count"])
        cards.append(("faults", faults, f"{words.count(stats['faults.pages'])} pages"))
        shares = advice.prefetch_shares(stats)
        cards.append(
            (
                "prefetches in time",
                f"{shares['useful']:.0%}",
                f"{words.count(stats['prefetch.issued'])} issued; late {shares['late']:.0%}, wasted {shares['wasted']:.0%}",
            )
        )
    else:
        moved = aggregating.link_bytes(aggregating.bytes_moved(trace.movements))
        cards.append(("time line", words.seconds(line.seconds if line else 0.0), ""))
        cards += [(advice.LINKS[link], words.size(size), "in the trace") for link, size in moved.items()]
        stalled = aggregating.waits_by_cause(trace.waits)["total"][1]
        cards.append(("stalled", words.seconds(stalled), "in the trace"))
    return element("dl", *(_card(*card) for card in cards), class_="cards")


def _card(label: str, value: str, more: str) -> Markup:
    small = element("small", more) if more else ""
    return element("div", element("dt", label), element("dd", value, small))


def _budgets(stats: Stats) -> dict[str, float]:
    found = {}
    for tier in TIERS:
        budget = stats.get(f"budget_bytes.{tier}", stats.get(f"budget_bytes.{tier}.current", 0))
        if budget:
            found[tier] = float(budget)
    return found


def _time_line(trace: Trace, line: aggregating.TimeLine | None) -> list[Markup]:
    if line is None:
        return [element("p", "The trace holds no movements (trace_events_max=0): there are totals only.")]
    parts = timeline.section(line, _budgets(trace.stats) if trace.stats is not None else {})
    kept = len(trace.movements.kinds)
    if trace.events_most and kept >= trace.events_most:
        told = f"The trace holds the newest {words.count(kept)} movements (trace_events_max); older ones are not in it."
        parts.insert(0, element("p", told))
    return parts


def _tiers_and_links(trace: Trace) -> list[Markup]:
    parts: list[Markup] = []
    if trace.stats is not None:
        parts += [_tiers(trace.stats), _links(trace.stats), _predicted(trace.stats)]
    moved = aggregating.bytes_moved(trace.movements)
    rows: list[list[object]] = [
        [name.replace("_", " "), words.count(count), words.size(size), words.size(size / count if count else 0)]
        for name, (count, size) in moved.items()
    ]
    heads = ["direction", "movements", "bytes", "mean"]
    parts.append(table("Movements in the trace, by direction", heads, rows, "moved"))
    return [element("div", *parts, class_="beside"), *_tag_places(trace)]


def _tiers(stats: Stats) -> Markup:
    budgets = _budgets(stats)
    rows: list[list[object]] = [
        [
            words.TIER_NAMES[tier],
            words.size(stats[f"resident_bytes.{tier}.current"]),
            words.size(stats[f"resident_bytes.{tier}.peak"]),
            words.size(budgets[tier]) if tier in budgets else "-",
        ]
        for tier in TIERS
    ]
    live = f"Live tensors {words.size(stats['live_bytes.current'])}, at most {words.size(stats['live_bytes.peak'])}"
    return table(f"Tiers at the end. {live}", ["tier", "in use", "peak", "budget"], rows, "tiers")


def _links(stats: Stats) -> Markup:
    elapsed = stats["elapsed_seconds"]
    rows: list[list[object]] = []
    for link in LINKS:
        size, busy = stats[f"link_bytes.{link}"], stats[f"link_seconds.{link}"]
        part = words.percent(share(busy, elapsed))
        rows.append([LINKS[link], words.size(size), f"{busy:.3f}", part, words.rate(size, busy)])
    return table("Links, all of the time", ["link", "bytes", "busy s", "of the time", "GB/s"], rows, "links")


def _predicted(stats: Stats) -> Markup:
    rows: list[list[object]] = [["uses that came as predicted", "100%", words.percent(advice.predicted_share(stats))]]
    for kind, value in advice.prefetch_shares(stats).items():
        rows.append([f"prefetches {kind}", "100%" if kind == "useful" else "0%", words.percent(value)])
    for what in ("fetched", "written"):
        pair = advice.moved(stats, what)
        if pair is not None:
            rows.append([f"{what} in a recurrence", words.size(pair[0]), words.size(pair[1])])
    return table("Predicted against measured", ["what", "predicted", "measured"], rows, "predicted")


def _stalls(trace: Trace, line: aggregating.TimeLine | None) -> list[Markup]:
    if trace.stats is None and not trace.waits:
        return [element("p", "Nobody waited.")]
    parts = [_causes(trace)]
    for what, totals, name_of in (
        ("operator", trace.operators, lambda wait: wait.operator),
        ("tag", trace.tags, lambda wait: wait.tag),
    ):
        parts += _waiters(trace, what, totals, name_of)
    return [*parts, *_longest_waits(trace, line)]


def _causes(trace: Trace) -> Markup:
    stats = trace.stats
    if stats is None:
        found, of = aggregating.waits_by_cause(trace.waits), "of the trace"
    else:
        found = {
            cause: (int(stats[f"stall_count.{cause}"]), float(stats[f"stall_seconds.{cause}"]))
            for cause in (*CAUSES, "total")
        }
        of = "all of the time"
    total = found["total"][1]
    order = sorted(CAUSES, key=lambda cause: -found[cause][1])
    rows: list[list[object]] = [
        [cause, words.count(found[cause][0]), f"{found[cause][1]:.3f}", words.percent(share(found[cause][1], total)),
         _CAUSE_HELP.get(cause, "")]
        for cause in (*order, "total")
    ]  # fmt: skip
    heads = ["cause", "waits", "seconds", "share", "what it is, and what helps"]
    return table(f"Stalls by cause, {of}: waits in which a cause had a part", heads, rows, "causes", texts=(0, 4))


def _waiters(trace: Trace, what: str, totals: list[dict[str, Any]], name_of: Callable[[Wait], str]) -> list[Markup]:
    of = "all of the time" if trace.stats is not None else "of the trace"
    known = totals if trace.stats is not None else aggregating.waits_by(trace.waits, name_of)
    if not known:
        return []
    whole = trace.stats["stall_seconds.total"] if trace.stats is not None else sum(row["seconds"] for row in known)
    rows: list[list[object]] = [
        [
            row["name"],
            words.count(row["count"]),
            f"{row['seconds']:.3f}",
            words.percent(share(row["seconds"], whole)),
            words.size(row["bytes"]),
            words.percent(share(row["predicted_bytes"], row["bytes"])),
            advice.main_cause(row),
            advice.help_for(row),
        ]
        for row in known[:_ROWS]
    ]
    heads = [what, "waits", "seconds", "share", "waited for", "predicted", "mostly", "would have helped"]
    more = f"; the longest {_ROWS} of {len(known)}" if len(known) > _ROWS else ""
    caption = f"Stalls by {what}, {of}{more}"
    return [table(caption, heads, rows, f"by-{what}", texts=(0, 6, 7))]


def _longest_waits(trace: Trace, line: aggregating.TimeLine | None) -> list[Markup]:
    if not trace.waits or line is None:
        return []
    rows: list[list[object]] = []
    for wait in sorted(trace.waits, key=lambda wait: -wait.duration)[:_ROWS]:
        longest = max(range(len(CAUSES)), key=wait.causes.__getitem__)
        at = (wait.start - line.start) / 1e6
        more = wait.region_count - len(wait.regions)
        regions = ", ".join(str(number) for number, _ in wait.regions) + (f" and {more:.0f} more" if more > 0 else "")
        rows.append([f"{at:.3f}", f"{wait.duration / 1e3:.3f}", wait.operator, wait.tag or "-", CAUSES[longest],
                     words.size(wait.bytes), regions or "-"])  # fmt: skip
    heads = ["at s", "ms", "operator", "tag", "mostly", "waited for", "regions"]
    return [table("The longest single waits in the trace", heads, rows, "longest", texts=(2, 3, 4, 6))]


def _what_moved(trace: Trace) -> list[Markup]:
    parts = []
    regions = aggregating.regions(trace.waits)
    if regions:
        rows: list[list[object]] = []
        for region in regions[:_ROWS]:
            operator = max(region.operators, key=region.operators.__getitem__)
            rows.append([region.number, words.size(region.most), words.size(region.bytes), words.count(region.waits),
                         f"{region.seconds:.3f}", operator, region.tag or words.UNKNOWN])  # fmt: skip
        heads = ["region", "at least", "waited for", "waits", "seconds", "mostly by", "tag"]
        more = f" ({_ROWS} of {words.count(len(regions))})" if len(regions) > _ROWS else ""
        caption = f"Regions, the storages of tensors, that were waited for{more}: a wait names its largest few"
        parts.append(table(caption, heads, rows, "regions", texts=(0, 5, 6)))
    parts += _pages(trace)
    return parts or [element("p", "Nothing moved.")]


def _tag_places(trace: Trace) -> list[Markup]:
    if not trace.tag_places:
        return []
    rows: list[list[object]] = [
        [row.name, *map(words.size, (row.live, row.device, row.host, row.nvme)), words.count(row.uses)]
        for row in trace.tag_places[:_ROWS]
    ]
    heads = ["tag", "live", *words.TIER_NAMES.values(), "uses"]
    more = f" ({_ROWS} largest of {len(trace.tag_places)})" if len(trace.tag_places) > _ROWS else ""
    caption = f"Where the live tensors of each tag lay at the end{more}: what has two copies is in two tiers"
    return [table(caption, heads, rows, "tag-places", texts=(0,))]


def _pages(trace: Trace) -> list[Markup]:
    pages = aggregating.pages(trace.movements)
    if not pages:
        return []
    rows: list[list[object]] = []
    for one in pages[:_ROWS]:
        up, down, read, written = (
            sum(one.moved[name] for name in aggregating.DIRECTIONS_OF_LINKS[link]) for link in LINKS
        )
        seen = words.TIER_NAMES.get(one.last_seen, words.UNKNOWN)
        rows.append([one.number, words.size(one.bytes), words.count(one.times), words.size(up), words.size(down),
                     words.size(read), words.size(written), seen])  # fmt: skip
    heads = ["page", "size", "movements", *LINKS.values(), "last seen in"]
    more = f" ({_ROWS} of {words.count(len(pages))})" if len(pages) > _ROWS else ""
    return [table(f"Pages that moved most in the trace{more}", heads, rows, "pages", texts=(0, 7))]


def _unknown(trace: Trace) -> list[Markup]:
    lines = [
        "Names and shapes of tensors, and which page belongs to which region: a trace has numbers only. A number is used "
        'again after its tensor has died. tierpage.paged("name") gives tags; tierpage.where(tensor) tells where one is.',
        "Regions that nobody waited for. A region's size: it is at least the most bytes that one wait awaited of it.",
        "Movements and waits before the oldest ones in the trace; the totals have them.",
        "On CUDA, how long the device stood still: waits are those of the program's threads, and waits of several "
        "threads add up.",
    ]
    if trace.left_out:
        lines.append(f"{words.count(trace.left_out)} events of the trace, which cannot be true and were left out.")
    return [element("ul", joined([element("li", line) for line in lines]))]
