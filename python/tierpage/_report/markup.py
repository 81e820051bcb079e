"""Builds HTML out of elements. Text is escaped unless it is ``Markup``, which only this file makes."""

from __future__ import annotations

import html
import re

# Elements that have no end.
_VOID = {"meta", "line"}
_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9-]*")


class Markup(str):
    """Text that is HTML already."""


def escaped(content: object) -> Markup:
    """Content as HTML: Markup as it is, all else as text, quotes included."""
    return content if isinstance(content, Markup) else Markup(html.escape(str(content), quote=True))


def element(name: str, /, *content: object, **attributes: object) -> Markup:
    """One element. ``class_`` is ``class``, other underscores are hyphens; attributes that are None are left out."""
    words = [name]
    for key, value in attributes.items():
        if value is None:
            continue
        key = key.rstrip("_").replace("_", "-")
        assert _NAME.fullmatch(key)
        words.append(f'{key}="{html.escape(str(value), quote=True)}"')
    head = " ".join(words)
    if name in _VOID:
        return Markup(f"<{head}>" if name == "meta" else f"<{head}/>")
    return Markup(f"<{head}>{joined(content)}</{name}>")


def joined(parts: object) -> Markup:
    """Contents one after the other."""
    assert isinstance(parts, list | tuple)
    return Markup("".join(escaped(part) for part in parts))


def raw_style(text: str) -> Markup:
    """A style sheet of our own. Nothing of a file may be in it."""
    assert "<" not in text
    return Markup(f"<style>{text}</style>")


def table(
    caption: object, heads: list[str], rows: list[list[object]], identifier: str, *, texts: tuple[int, ...] = (0,)
) -> Markup:
    """A table that scrolls sideways, also by keyboard, where it is too wide. The first cell of a row is its heading.

    ``texts`` are the columns that are no numbers.
    """

    def kind(column: int) -> str | None:
        return "text" if column in texts else None

    head = element("tr", *(element("th", text, scope="col", class_=kind(column)) for column, text in enumerate(heads)))
    body = []
    for row in rows:
        cells = [element("th", row[0], scope="row", class_=kind(0))]
        cells += [element("td", cell, class_=kind(column)) for column, cell in enumerate(row[1:], start=1)]
        body.append(element("tr", *cells))
    made = element("table", element("caption", caption, id=identifier), element("thead", head), element("tbody", *body))
    return element("div", made, class_="wide", role="region", tabindex="0", aria_labelledby=identifier)
