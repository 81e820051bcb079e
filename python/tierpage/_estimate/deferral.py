"""Rewrites a recorded program as tierpage runs it: fused optimizer updates where their tensors are next used.

The recording (csrc/estimate/program.h) has one operator over lists for the whole step; csrc/torch/deferral.h runs it index
by index. Gradients that the program frees before then live until their update has run, under numbers of their own. They
are also marked as read and not written, as the interceptor announces them.
"""

from __future__ import annotations

import heapq
import re
from dataclasses import dataclass, field

__all__ = ["deferred"]

FUSED = re.compile(r"aten::_fused_(adam|adamw|sgd|adagrad)_")
USE, FRESH = re.compile(r"(\d+)([rw])"), re.compile(r"\+(\d+):(\d+)")
FIRST_NUMBER = 100_000  # of kept gradients
LAUNCH_MICROSECONDS = 4.0
GRADIENT = 1  # the place of the gradient in each index


@dataclass(eq=False)
class Content:
    """One allocation; the recording gives numbers again."""

    number: int
    bytes: int
    gradient: bool = False  # numbered anew where it is allocated


@dataclass
class Use:
    content: Content
    mode: str

    def __str__(self) -> str:
        return f"{self.content.number}{self.mode}"


@dataclass
class Record:
    kind: str
    text: str
    name: str = ""
    microseconds: float = 0
    indices: list[list[Use]] = field(default_factory=list)  # one, but for operators over lists
    fresh: list[Content] = field(default_factory=list)
    freed: Content | None = None


@dataclass
class Update:
    record: Record
    uses: list[Use]
    gradient_freed: bool = False


def parse(lines: list[str]) -> list[Record]:
    """Resolves numbers to contents."""
    live: dict[int, Content] = {}
    records = []
    for text in lines:
        words = text.split()
        record = Record(words[0] if words else "#", text)
        records.append(record)
        if record.kind == "A":
            live[int(words[1])] = content = Content(int(words[1]), int(words[2]))
            record.fresh.append(content)
        elif record.kind == "F":
            record.freed = live[int(words[1])]
        elif record.kind in ("O", "O*"):
            record.name, record.microseconds, record.indices = words[1], float(words[2]), [[]]
            for word in words[3:]:
                if word == ";":
                    record.indices.append([])
                elif match := USE.fullmatch(word):
                    record.indices[-1].append(Use(live[int(match[1])], match[2]))
                elif match := FRESH.fullmatch(word):
                    live[int(match[1])] = content = Content(int(match[1]), int(match[2]))
                    record.fresh.append(content)
    return records


def mark_gradients(records: list[Record]) -> None:
    """Updates read their gradients, which are no longer known by the recording's numbers."""
    for record in records:
        if record.kind == "O*" and FUSED.fullmatch(record.name):
            for uses in record.indices:
                if len(uses) > GRADIENT:
                    uses[GRADIENT].content.gradient = True
                    uses[GRADIENT].mode = "r"


class Writer:
    """Puts the updates where they run."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._waiting: dict[int, Update] = {}  # by the identity of each content
        self._numbers: list[int] = []  # that gradients had which are gone: the least one goes to the next
        self._numbers_used = 0

    def write(self, record: Record) -> None:
        if record.kind == "O*" and FUSED.fullmatch(record.name):
            self._defer(record)
        elif record.freed is not None:
            update = self._waiting.get(id(record.freed))
            if update is None:
                self._free(record.freed)
            else:
                update.gradient_freed = True
        elif record.kind == "A":
            self._number(record.fresh)
            self.lines.append(f"A {record.fresh[0].number} {record.fresh[0].bytes}")
        elif record.kind in ("O", "O*"):
            self._operator(record)
        else:
            self.lines.append(record.text)

    def _number(self, fresh: list[Content]) -> None:
        for content in fresh:
            if content.gradient and self._numbers:
                content.number = heapq.heappop(self._numbers)
            elif content.gradient:
                content.number = FIRST_NUMBER + self._numbers_used
                self._numbers_used += 1

    def _free(self, content: Content) -> None:
        self.lines.append(f"F {content.number}")
        if content.gradient:
            heapq.heappush(self._numbers, content.number)

    def _defer(self, record: Record) -> None:
        for uses in record.indices:
            self._run_for(uses)
            update = Update(record, uses)
            self._waiting.update({id(use.content): update for use in uses})

    def _run_for(self, uses: list[Use]) -> None:
        for use in uses:
            update = self._waiting.get(id(use.content))
            if update is not None:
                self._run(update)

    def _run(self, update: Update) -> None:
        total = sum(use.content.bytes for uses in update.record.indices for use in uses)
        share = sum(use.content.bytes for use in update.uses) / total
        microseconds = update.record.microseconds * share + LAUNCH_MICROSECONDS
        self.lines.append(f"O {update.record.name} {microseconds:.1f} {' '.join(map(str, update.uses))}")
        for use in update.uses:
            self._waiting.pop(id(use.content), None)
        if update.gradient_freed:
            self._free(update.uses[GRADIENT].content)

    def _operator(self, record: Record) -> None:
        for uses in record.indices:
            self._run_for(uses)
        self._number(record.fresh)
        groups = " ; ".join(" ".join(map(str, uses)) for uses in record.indices)
        fresh = " ".join(f"+{content.number}:{content.bytes}" for content in record.fresh)
        self.lines.append(" ".join(f"{record.kind} {record.name} {record.microseconds:g} {groups} {fresh}".split()))


def deferred(text: str) -> str:
    """The rewritten program. Raises ValueError where it has no fused optimizer over lists, or where its loop would not
    end with the memory with which it began."""
    records = parse(text.splitlines())
    if not any(record.kind == "O*" and FUSED.fullmatch(record.name) for record in records):
        raise ValueError("the program has no fused optimizer step over lists")
    mark_gradients(records)
    writer = Writer()
    for record in records:
        writer.write(record)
    begin = writer.lines.index("L") if "L" in writer.lines else len(writer.lines)
    if alive(writer.lines[:begin]) != alive(writer.lines):
        raise ValueError("with its updates deferred, a step of the program does not end as it began")
    return "\n".join(writer.lines) + "\n"


def alive(lines: list[str]) -> dict[int, int]:
    """Bytes by number, of what is there after these lines."""
    live: dict[int, int] = {}
    for record in parse(lines):
        live.update((content.number, content.bytes) for content in record.fresh)
        if record.freed is not None:
            del live[record.freed.number]
    return live
