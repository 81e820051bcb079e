"""The section with the time line: a row for each tier, each link and the waits, and the same as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tierpage._report import drawing, words
from tierpage._report.aggregating import GROUP, SLICES, TimeLine, grouped, mean
from tierpage._report.markup import Markup, element, table
from tierpage.advice import LINKS

_AXIS_PARTS = 4
_LIMIT_SHOWN = 1.3  # a budget far above what was used would press the rest flat


def section(line: TimeLine, budgets: Mapping[str, float]) -> list[Markup]:
    """The rows under one axis, and their table."""
    spans = _spans(line)
    rows = [_level(line, tier, budgets.get(tier), spans) for tier in line.levels]
    links = [link for link in LINKS if any(line.rates[link])]
    silent = [words.LINK_NAMES[link].lower() for link in LINKS if link not in links]
    rows += [_rate(line, link, spans) for link in links]
    rows.append(_waits(line, spans))
    told = [element("p", f"Nothing moved {' and nothing '.join(silent)}.", class_="soft")] if silent else []
    return [
        element(
            "p",
            f"{words.seconds(line.seconds)} in {SLICES} slices of {words.seconds(line.seconds / SLICES)}. A tier shows "
            "the most bytes within a slice, a link the mean rate, the waits the share of the slice in which a thread "
            "waited.",
            class_="soft",
        ),
        element("figure", *rows, _axis(line.seconds)),
        *told,
        element("details", element("summary", "The time line as a table"), _table(line, links)),
    ]


def _spans(line: TimeLine) -> list[str]:
    each = line.seconds / SLICES * GROUP
    return [f"{number * each:.6g} to {(number + 1) * each:.6g} s" for number in range(SLICES // GROUP)]


def _tips(spans: Sequence[str], values: Sequence[str]) -> list[str]:
    return [f"{span}: {value}" for span, value in zip(spans, values, strict=True)]


def _row(name: str, told: str, drawn: Markup, *, low: bool = False) -> Markup:
    words_ = element("p", element("b", name), " ", element("span", told))
    return element("div", words_, drawn, class_="row low" if low else "row")


def _level(line: TimeLine, tier: str, budget: float | None, spans: Sequence[str]) -> Markup:
    values = line.levels[tier]
    most = max((value for value in values if value is not None), default=0.0)
    drawn_budget = budget if budget and budget <= _LIMIT_SHOWN * most else None
    top = max(most, drawn_budget or 0.0)
    told = f"at most {words.size(most)}"
    if budget:
        told += f", budget {words.size(budget)}" + (" (dashed)" if drawn_budget else "")
    name = f"{words.TIER_NAMES[tier]}: bytes in use"
    limit = drawn_budget / top if drawn_budget and top else None
    tips = _tips(spans, [words.size(value) for value in grouped(values, max)])
    drawn = drawing.row(f"row-{tier}", name, f"{told}; the height is {words.size(top)}.", drawing.area(values, top),
                        "level", tips, limit)  # fmt: skip
    return _row(name[0].upper() + name[1:], told, drawn)


def _rate(line: TimeLine, link: str, spans: Sequence[str]) -> Markup:
    values = line.rates[link]
    most = max(values)
    told = f"at most {_rate_text(most)} GB/s"
    tips = _tips(spans, [f"{_rate_text(value)} GB/s" for value in grouped(values, mean)])
    name = f"{words.LINK_NAMES[link]}: GB/s"
    drawn = drawing.row(f"row-{link}", name, f"{told}, which is the height.", drawing.area(values, most), "rate", tips)
    return _row(name, told, drawn)


def _rate_text(value: float | None) -> str:
    return (
        words.UNKNOWN if value is None else f"{value / 1e9:.2f}" if value >= 1e7 or value == 0 else f"{value / 1e9:.2g}"
    )


def _waits(line: TimeLine, spans: Sequence[str]) -> Markup:
    told = f"{words.percent(mean(line.waited))} of the time" if any(line.waited) else "none"
    tips = _tips(spans, [words.percent(value or 0.0) for value in grouped(line.waited, mean)])
    drawn = drawing.row("row-waits", "Waits: share of each slice", f"{told}; the height is 100%.",
                        drawing.marks(line.waited), "waits", tips)  # fmt: skip
    return _row("Waits: share of each slice", told, drawn, low=True)


def _axis(seconds: float) -> Markup:
    ticks = [
        element("span", words.seconds(seconds * part / _AXIS_PARTS) if part else "0", class_=f"at{part}")
        for part in range(_AXIS_PARTS + 1)
    ]
    return element("div", *ticks, class_="axis", aria_hidden="true")


def _table(line: TimeLine, links: Sequence[str]) -> Markup:
    columns: list[list[str]] = []
    for values in line.levels.values():
        columns.append([words.size(value) for value in grouped(values, max)])
    for link in links:
        columns.append([_rate_text(value) for value in grouped(line.rates[link], mean)])
    columns.append([words.percent(value or 0.0) for value in grouped(line.waited, mean)])
    heads = ["seconds", *(f"{words.TIER_NAMES[tier]}, most" for tier in line.levels)]
    heads += [*(f"{words.LINK_NAMES[link].lower()}, GB/s" for link in links), "waited"]
    rows: list[list[object]] = [
        [span.removesuffix(" s"), *cells] for span, *cells in zip(_spans(line), *columns, strict=True)
    ]
    return table("Time line: the most bytes in each tier, mean rates, share of time waited", heads, rows, "time-table")
