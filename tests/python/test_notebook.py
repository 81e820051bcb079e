"""What a notebook shows of the pager and its summary: HTML that stands alone, in which all text is escaped."""

from __future__ import annotations

import copy
import pickle
import re
from html.parser import HTMLParser
from typing import Any

import torch

import tierpage
from tierpage import advice
from tierpage.memory import Summary, summary_of

HOSTILE = "<script>alert('1')</script><img src=x onerror=y> & \"z\""

NAMES = "div style table thead tbody tr th td p ul li span details summary"


class Page(HTMLParser):
    """Reads HTML strictly: what is opened is closed, in order. Keeps names, attributes, cells and the style sheet."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.names: set[str] = set()
        self.attributes: set[str] = set()
        self.texts: list[str] = []
        self.style = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["style"]:
            self.style += data
        else:
            self.texts.append(data)


def checked(html: str) -> Page:
    """The page, which must stand alone and keep to itself."""
    page = Page(html)
    assert page.names <= set(NAMES.split())
    assert page.attributes <= {"class", "scope", "style"}  # two outputs in one notebook may not share an id
    assert not re.search(r"https?:|//|url\(|@import", html)
    selectors = re.findall(r"([^{}]+)\{", page.style)
    assert all(one.strip().startswith(".tierpage ") for rule in selectors for one in rule.split(","))
    for property_ in ("color", "background"):  # the notebook's own, or one that can be seen through
        values = re.findall(rf"[ ;{{]{property_}: ([^;]+);", page.style)
        assert values
        assert all(value in ("inherit", "transparent") or value.startswith("rgba(") for value in values)
    return page


def test_a_pager_shows_its_tiers(options: dict[str, Any], device: str) -> None:
    pager = tierpage.enable(**options)
    with pager:
        held = torch.ones(100, 100, device=device)
        page = checked(pager._repr_html_())
        assert f"tierpage, active on {device}:0" in page.texts
        assert {"device", "host", "nvme", "budget", "device_budget", "argument"} <= set(page.texts)
        assert "table" in page.names
    page = checked(pager._repr_html_())
    assert f"tierpage, disabled on {device}:0" in page.texts
    assert "device_budget" in page.texts
    assert "peak" not in page.texts
    del held


def test_the_summary_is_a_text_and_tables(options: dict[str, Any], device: str) -> None:
    with tierpage.enable(**options):
        held = torch.ones(100, 100, device=device)
        summary = tierpage.memory_summary()
        assert isinstance(summary, str)
        assert f"{summary}" == str(summary) == summary + ""
        assert summary.startswith("tierpage memory on ")
        page = checked(summary._repr_html_())  # type: ignore[attr-defined]
        told = " ".join(page.texts)
        for word in re.findall(r"\S+", summary):
            assert set(word) <= {"-"} or word in told, word
        del held
    off = tierpage.memory_summary()
    assert off == "tierpage is not enabled"
    assert off in checked(off._repr_html_()).texts  # type: ignore[attr-defined]


def test_texts_are_escaped() -> None:
    row = {"name": HOSTILE, "count": 1, "seconds": 1.0, "bytes": 1, "predicted_bytes": 0}
    row |= {f"seconds.{cause}": 0.0 for cause in advice.CAUSES} | {"seconds.fault": 1.0}
    summary = summary_of({"elapsed_seconds": 2.0, "stall_seconds.total": 1.0}, HOSTILE, [row], [row])
    page = checked(summary._repr_html_())
    assert page.texts.count(HOSTILE) == 2
    assert f"tierpage memory on {HOSTILE}" in page.texts
    assert "li" in checked(Summary(["- one", "- two", HOSTILE])._repr_html_()).names


def test_a_pickle_of_a_summary_is_plain_text() -> None:
    summary = summary_of({}, "cpu:0")
    data = pickle.dumps(summary)
    assert b"tierpage.memory" not in data
    for other in (pickle.loads(data), copy.deepcopy(summary)):
        assert type(other) is str
        assert other == summary
