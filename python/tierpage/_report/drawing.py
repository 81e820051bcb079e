"""Rows of the time line as SVG. They hold shapes only and are stretched to the page's width; words stand beside them."""

from __future__ import annotations

from collections.abc import Sequence

from tierpage._report.aggregating import GROUP, SLICES
from tierpage._report.markup import Markup, element

HEIGHT = 100


def area(values: Sequence[float | None], most: float) -> str:
    """The path of a filled staircase, one step for each slice; a gap where nothing is known. Equal steps are one."""
    words: list[str] = []
    open_ = False
    before = ""
    for position, value in enumerate(values):
        if value is None:
            words += [f"V{HEIGHT}Z"] if open_ else []
            open_, before = False, ""
            continue
        height = _height(value, most)
        if not open_:
            words.append(f"M{position} {HEIGHT}V{height}")
        elif height != before:
            words.append(f"V{height}")
        if words[-1].startswith("H"):
            words.pop()
        words.append(f"H{position + 1}")
        open_, before = True, height
    return "".join(words) + (f"V{HEIGHT}Z" if open_ else "")


def marks(shares: Sequence[float]) -> str:
    """The path of one bar for each slice that is not 0. None is so low that it cannot be seen."""
    words = []
    for position, share in enumerate(shares):
        if share > 0:
            words.append(f"M{position} {HEIGHT}V{min(float(_height(share, 1.0)), HEIGHT - 8):g}h1V{HEIGHT}Z")
    return "".join(words)


def _height(value: float, most: float) -> str:
    share = value / most if most > 0 else 0.0
    return f"{HEIGHT * (1 - min(max(share, 0.0), 1.0)):.1f}".removesuffix(".0")


def row(
    identifier: str, title: str, description: str, path: str, kind: str, tips: Sequence[str], limit: float | None = None
) -> Markup:
    """One row: its path, lines at the quarters, ``limit`` (a share of the height) as a dashed line, and a tip for
    whoever points at a group of slices."""
    quarters = [
        element("line", x1=SLICES * part // 4, x2=SLICES * part // 4, y1=0, y2=HEIGHT, class_="quarter")
        for part in (1, 2, 3)
    ]
    shapes = [*quarters, element("path", d=path, class_=kind)]
    if limit is not None:
        height = _height(limit, 1.0)
        shapes.append(element("line", x1=0, x2=SLICES, y1=height, y2=height, class_="limit"))
    for number, tip in enumerate(tips):
        place = {"x": number * GROUP, "y": 0, "width": GROUP, "height": HEIGHT}
        shapes.append(element("rect", element("title", tip), class_="tip", **place))
    return element(
        "svg",
        element("title", title, id=f"{identifier}-title"),
        element("desc", description, id=f"{identifier}-text"),
        *shapes,
        viewBox=f"0 0 {SLICES} {HEIGHT}",
        preserveAspectRatio="none",
        role="img",
        aria_labelledby=f"{identifier}-title {identifier}-text",
    )
