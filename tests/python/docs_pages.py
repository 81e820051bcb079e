"""The blocks of code in README.md and docs/, as they stand there.

A block that cannot run on the host device says so in the line above its fence: ``<!-- not run: needs a GPU -->``. It is
compiled then.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(
    r"^(?:<!-- not run: (?P<reason>.+?) -->\n)?^```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """One block; ``heading`` is the nearest one above it, ``reason`` says why it is not run, if it is not."""

    page: str
    heading: str
    line: int
    language: str
    text: str
    reason: str | None

    @property
    def name(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(language: str) -> Iterator[Block]:
    for path in PAGES:
        page = path.read_text()
        for found in _FENCE.finditer(page):
            if found["language"] == language:
                above = page[: found.start("text")]
                headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", above, flags=re.M | re.S), re.M)
                yield Block(
                    str(path.relative_to(ROOT)), headings[-1] if headings else "", above.count("\n") + 1,
                    language, found["text"], found["reason"],
                )  # fmt: skip


def commands() -> Iterator[tuple[str, str]]:
    """(place, command line) of each use of ``tierpage`` in shell blocks, and in a line of text where it has options."""
    for block in blocks("bash"):
        for line in block.text.replace("\\\n", " ").splitlines():
            if re.search(r"(^|\s)tierpage\s", line):
                yield block.name, line
    for path in PAGES:
        for span in re.findall(r"(?<!`)`(tierpage \w+ [^`]*-[^`]*)`", re.sub(r"\n(?=\S)", " ", path.read_text())):
            yield str(path.relative_to(ROOT)), span


def configurations() -> Iterator[tuple[str, str]]:
    """(place, text) of each value of TIERPAGE_CONF that a page writes out."""
    for path in PAGES:
        for text in re.findall(r'TIERPAGE_CONF="([^"]+)"', path.read_text()):
            yield str(path.relative_to(ROOT)), text
