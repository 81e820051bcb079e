"""How a notebook shows the pager and its summary: HTML without a script, in the colours of the page around it.

A notebook's theme is not the system's, so that no colour is chosen here but greys and a blue that can be seen through.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tierpage._report.markup import Markup, element, joined, raw_style

__all__ = ["folded", "page_of", "share_bar"]

_STYLE = """
.tierpage table { border-collapse: collapse; margin: .5em 0; font-variant-numeric: tabular-nums; }
.tierpage th, .tierpage td { text-align: right; padding: .15em .75em; white-space: nowrap; vertical-align: top;
  border: 0; border-bottom: 1px solid rgba(128, 128, 128, .4); color: inherit; background: transparent; }
.tierpage thead th { font-weight: 600; }
.tierpage tbody th { font-weight: inherit; }
.tierpage tr > :first-child { text-align: left; padding-left: 0; }
.tierpage p { margin: .25em 0; }
.tierpage ul { margin: .25em 0; padding-left: 1.5em; }
.tierpage summary { cursor: pointer; }
.tierpage .wide { overflow-x: auto; }
.tierpage .bar { display: inline-block; width: 8em; height: .75em; background: rgba(128, 128, 128, .25); }
.tierpage .bar span { display: block; height: 100%; background: rgba(66, 133, 200, .8); }
"""


def page_of(parts: Sequence[object]) -> str:
    """HTML of lines, of tables (lists of rows, the first of which is the heading) and of ``Markup``.

    Lines that begin with "- " are a list; empty lines only part what the tables part already.
    """
    return element("div", raw_style(_STYLE), *_shown(parts), class_="tierpage")


def _shown(parts: Sequence[object]) -> Iterator[Markup]:
    points: list[Markup] = []
    for part in [*parts, ""]:
        if isinstance(part, str) and not isinstance(part, Markup) and part.startswith("- "):
            points.append(element("li", part[2:]))
            continue
        if points:
            yield element("ul", *points)
            points = []
        if isinstance(part, Markup):
            yield part
        elif isinstance(part, list):
            yield _table(part)
        elif part:
            yield element("p", part)


def _table(rows: Sequence[Sequence[object]]) -> Markup:
    head = element("tr", *(element("th", text, scope="col") for text in rows[0]))
    body = [
        element("tr", element("th", row[0], scope="row"), *(element("td", cell) for cell in row[1:]))
        for row in rows[1:]
    ]
    table = element("table", element("thead", head), element("tbody", *body))
    return element("div", table, class_="wide")  # scrolls where the cell is narrow


def share_bar(part: float, whole: float) -> Markup:
    """A bar as long as the share, which it says too; empty where there is no whole."""
    if whole <= 0:
        return Markup("")
    share = min(max(part / whole, 0.0), 1.0)
    filled = element("span", style=f"width: {share:.1%}")
    return joined([element("span", filled, class_="bar"), f" {share:.0%}"])


def folded(title: str, rows: Sequence[Sequence[object]]) -> Markup:
    """A table that is folded away until somebody clicks on its title."""
    return element("details", element("summary", title), _table(rows))
