"""Reads the page of ``tierpage report`` strictly, and checks what every such page has to fulfil."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = {"meta", "line"}


class Structure(HTMLParser):
    """Reads a page strictly: what is opened is closed, in order. Keeps tables, texts, and what there is of each name."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.names: list[str] = []
        self.identifiers: list[str] = []
        self.references: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.svg_parts: list[list[str]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.cards: list[str] = []
        self.heads_without_scope = 0
        self._table = ""
        self._text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        assert len(known) == len(attrs)
        self.names.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if "id" in known:
            self.identifiers.append(str(known["id"]))
        self.references += str(known.get("aria-labelledby", "")).split()
        if tag == "svg":
            self.svg_parts.append([])
        elif "svg" in self.open:
            self.svg_parts[-1].append(tag)
        if tag == "caption":
            self._table = str(known["id"])
            self.tables[self._table] = []
        elif tag == "tr":
            self.tables[self._table].append([])
        elif tag == "th":
            self.heads_without_scope += known.get("scope") not in ("row", "col")
        if tag in ("th", "td", "dd"):
            self._text = []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag in ("th", "td"):
            self.tables[self._table][-1].append("".join(self._text))
        elif tag == "dd":
            self.cards.append("".join(self._text))

    def handle_data(self, data: str) -> None:
        self._text.append(data)

    def row(self, table: str, head: str) -> list[str]:
        return next(row for row in self.tables[table] if row[0] == head)


def checked(text: str) -> Structure:
    """The page's structure, after what every page has to fulfil."""
    found = Structure(text)
    assert len(set(found.identifiers)) == len(found.identifiers)
    assert set(found.references) <= set(found.identifiers)
    assert found.heads_without_scope == 0
    assert all(parts[:2] == ["title", "desc"] for parts in found.svg_parts)
    assert not {"script", "link", "img", "iframe", "object", "base", "a", "form", "foreignobject"} & set(found.names)
    # Nothing that runs or fetches, and no style that the policy does not name.
    assert not [row for row in found.attributes if row[1].startswith("on") or row[1] in ("style", "href", "src")]
    policy = next(value for tag, name, value in found.attributes if (tag, name) == ("meta", "content"))
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert "url(" not in text
    assert "@import" not in text
    assert next(name for name in found.names if re.fullmatch("h[1-6]", name)) == "h1"
    return found
