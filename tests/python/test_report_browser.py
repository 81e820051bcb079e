"""The page of ``tierpage report`` in a real browser: nothing is fetched, it can be read in both schemes, on a small screen
and by keyboard alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import tierpage
from browser import PROGRAM, Page
from tierpage import cli

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="there is no chromium: apt-get install chromium")

CONTRAST_LEAST = 4.5  # WCAG 2.2, level AA, for text
# The text of every element against what is behind it: [contrast, text], the worst first.
CONTRASTS = """
(() => {
  const light = text => {
    const [r, g, b] = text.match(/[0-9.]+/g).slice(0, 3).map(Number)
      .map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = element => {
    for (let e = element; e; e = e.parentElement) {
      const color = getComputedStyle(e).backgroundColor;
      if (!/, 0\\)|transparent/.test(color)) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const own = e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  return [...document.querySelectorAll("body *")].filter(own)
    .filter(e => e.getClientRects().length && !e.closest("svg")).map(e => {
    const [a, b] = [light(getComputedStyle(e).color), light(behind(e))].sort((x, y) => y - x);
    return [(a + 0.05) / (b + 0.05), e.textContent.trim().slice(0, 40)];
  }).sort((x, y) => x[0] - y[0]);
})()
"""
FOCUSED = """
(() => {
  const e = document.activeElement, style = getComputedStyle(e);
  return e === document.body ? null : [[...document.querySelectorAll("*")].indexOf(e),
    style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0];
})()
"""


@pytest.fixture
def shown(tmp_path: Path, options: dict[str, Any], device: str) -> Iterator[Page]:
    """The page of a program that paged, in a browser."""
    if device != "cpu":
        pytest.skip("the page is the same whatever was paged")
    with tierpage.enable(**options | {"device_budget": "2MiB"}):
        with tierpage.paged("weights <b>"):
            weights = [torch.randn(512, 512) for _ in range(8)]
        for _ in range(4):
            x = torch.ones(4, 512)
            for weight in weights:
                x = torch.tanh(x @ weight)
        tierpage.export_trace(str(tmp_path / "trace.json"))
    assert cli.main(["report", str(tmp_path / "trace.json"), "-o", str(tmp_path / "page.html")]) == 0
    with Page(tmp_path / "profile") as page:
        page.open(tmp_path / "page.html")
        yield page


def test_nothing_is_fetched_and_nothing_is_wrong(shown: Page) -> None:
    asked = [parameters["request"]["url"] for name, parameters in shown.events if name == "Network.requestWillBeSent"]
    assert len(asked) == 1
    assert asked[0].startswith("file:")
    wrong = ("Runtime.exceptionThrown", "Log.entryAdded", "Network.loadingFailed")
    assert [event for event in shown.events if event[0] in wrong] == []
    assert shown.value("document.querySelectorAll('svg').length") > 0
    assert "weights <b>" in shown.value("document.body.innerText")


def test_both_schemes_can_be_read(shown: Page) -> None:
    grounds = []
    for scheme in ("light", "dark"):
        shown.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        contrast, text = shown.value(CONTRASTS)[0]
        assert contrast >= CONTRAST_LEAST, (scheme, text)
        grounds.append(shown.value("getComputedStyle(document.body).backgroundColor"))
    assert grounds[0] != grounds[1]


@pytest.mark.parametrize("width", [360, 1280])
def test_no_screen_is_too_small(shown: Page, width: int) -> None:
    shown.ask("Emulation.setDeviceMetricsOverride", width=width, height=700, deviceScaleFactor=1, mobile=width < 500)
    assert shown.value("document.documentElement.scrollWidth") <= width


def test_the_keyboard_reaches_everything(shown: Page) -> None:
    expected = shown.value(
        "[...document.querySelectorAll('*')].map((e, i) => [e, i])"
        ".filter(([e]) => e.matches('a[href], button, summary, input, select, [tabindex=\"0\"]')"
        " && e.checkVisibility()).map(([, i]) => i)"  # not in what is folded
    )
    assert expected
    reached = []
    for _ in range(len(expected)):
        shown.press("Tab", 9)
        place, outlined = shown.value(FOCUSED) or (None, False)
        assert outlined, (reached, expected, place)
        reached.append(place)
    assert reached == expected
    # What is wider than the screen scrolls by keys.
    shown.ask("Emulation.setDeviceMetricsOverride", width=360, height=700, deviceScaleFactor=1, mobile=False)
    wide = "[...document.querySelectorAll('.wide')].findIndex(e => e.checkVisibility() && e.scrollWidth > e.clientWidth + 20)"
    number = shown.value(wide)
    assert number >= 0
    shown.value(f"document.querySelectorAll('.wide')[{number}].focus()")
    assert shown.value("document.activeElement.className") == "wide"
    shown.press("ArrowRight", 39)
    position = f"document.querySelectorAll('.wide')[{number}].scrollLeft"
    for _ in range(100):
        if shown.value(position) > 0:
            return
        time.sleep(0.02)
    raise AssertionError("the table does not scroll")
