"""What an estimate answers, and how it is made from the command line's words."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from tierpage import system
from tierpage._estimate.errors import EstimateError
from tierpage._estimate.machines import Drive, Machine
from tierpage._estimate.programs import Recording, Task, record
from tierpage._estimate.replaying import Budgets, Replayer, Row, WorkingSet
from tierpage._estimate.scripts import record_script
from tierpage._estimate.subjects import Subject
from tierpage.sizes import Size
from tierpage.system import format_bytes

__all__ = ["Answer", "Change", "Question", "answer", "batch_words"]

_GIB = 1 << 30
_LARGER_BUDGETS = (1.25, 1.5, 2.0)
_FITS_FACTORS = (1.02, 1.1, 1.25, 1.5)  # of what is alive: freed memory is kept for reuse too


@dataclass(frozen=True)
class Question:
    """What was asked. ``batches``: 0 is that of a program, which nobody here knows. ``host`` None: this machine's RAM as enable() would take it, else as much as the program needs."""

    subject: Subject
    task: Task
    machine: Machine
    batches: tuple[int, ...]
    device: tuple[Size, ...] = ()
    host: Size | None = None
    nvme: int = 0
    drives: tuple[Drive, ...] = ()
    changes: bool = True
    here: bool = False  # the machine is this one
    compress: str = "auto"  # as the setting


@dataclass(frozen=True)
class Change:
    """One thing larger than in the row ``before``, everything else equal."""

    what: str
    before: Row
    after: Row

    @property
    def factor(self) -> float | None:
        """Seconds for each sequence against those before; None where either does not run."""
        if self.before.refusal or self.after.refusal:
            return None
        sequences = self.after.batch / self.before.batch if self.before.batch else 1.0
        return self.after.seconds / self.before.seconds / sequences


@dataclass(frozen=True)
class Answer:
    """Everything that is printed. ``recordings`` and ``working_sets`` are by batch."""

    question: Question
    recordings: dict[int, Recording]
    working_sets: dict[int, WorkingSet]
    rows: list[Row] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)

    @property
    def runs(self) -> bool:
        """Whether any of the rows does."""
        return any(not row.refusal for row in self.rows)


def batch_words(batch: int) -> str:
    """ "batch 4", or what stands for a program's own."""
    return f"batch {batch}" if batch else "the program"


def answer(question: Question) -> Answer:
    """Records each batch and replays every row. Raises EstimateError."""
    made = Answer(question, {}, {})
    devices = _device_budgets(question)
    for batch in question.batches:
        replayer = _replayer(question, batch, made)
        made.working_sets[batch] = replayer.working_set()
        for drive in question.drives or (question.machine.drive,):
            for device in devices:
                budgets = Budgets(device, _host_budget(question, replayer), question.nvme)
                made.rows.append(replayer.row(batch, budgets, drive if question.nvme else None))
    if question.changes:
        made.changes.extend(_changes(question, made))
    return made


def _replayer(question: Question, batch: int, made: Answer) -> Replayer:
    if sys.stderr.isatty():
        print(f"recording {batch_words(batch)} on fake tensors ...", file=sys.stderr)
    task = replace(question.task, batch=batch)
    if question.subject.program:
        made.recordings[batch] = record_script(question.subject.program, question.machine.compute)
    else:
        made.recordings[batch] = record(question.subject, task, question.machine.compute(task.mode == "train"))
    return Replayer(made.recordings[batch], question.machine, question.compress)


def _device_budgets(question: Question) -> list[int]:
    machine = question.machine
    sizes = [size.of(machine.device_bytes) for size in question.device] or [machine.device_budget()]
    too_large = next((size for size in sizes if size > machine.device_bytes), None)
    if too_large is not None:
        raise EstimateError(
            f"--device-budget is {format_bytes(too_large)}, and {machine.name} has {format_bytes(machine.device_bytes)}: "
            "give less, or another --machine."
        )
    return sizes


def _host_budget(question: Question, replayer: Replayer) -> int:
    if question.host is not None:
        return question.host.of(system.memory().limit)
    if question.here:
        available = system.memory().available
        return available - max(_GIB, available // 10)
    return replayer.plenty()


def _changes(question: Question, made: Answer) -> Iterator[Change]:
    """Larger budgets, a drive twice as fast and twice the batch, each against the last row that runs: one that moves
    bytes, where there is one, since otherwise the batch alone changes anything."""
    running = [row for row in made.rows if not row.refusal]
    before = next((row for row in reversed(running) if row.moves), running[-1] if running else None)
    if before is None:
        return
    if before.moves:
        yield from _faster(question, made, before)
    if len(question.batches) == 1 and question.subject.make is not None:
        batch = 2 * before.batch
        larger = _replayer(question, batch, made)
        budgets_then = replace(before.budgets, host=_host_budget(question, larger))
        yield Change(f"batch {batch}", before, larger.row(batch, budgets_then, before.drive))


def _faster(question: Question, made: Answer, before: Row) -> Iterator[Change]:
    replayer = Replayer(made.recordings[before.batch], question.machine, question.compress)

    def at(device: int) -> Row:
        return replayer.row(before.batch, replace(before.budgets, device=device), before.drive)

    for factor in _LARGER_BUDGETS:
        size = int(before.budgets.device * factor)
        if size < replayer.whole_bytes:
            yield Change(f"{factor:g} x the device budget, {format_bytes(size)}", before, at(size))
    for factor in _FITS_FACTORS:
        held = at(max(int(replayer.whole_bytes * factor), before.budgets.device))
        if not held.refusal and not held.moves:
            yield Change(f"a device that holds all, {format_bytes(held.budgets.device)}", before, held)
            break
    if before.drive is not None:
        twice = Drive(2 * before.drive.read, 2 * before.drive.write)
        yield Change("a drive twice as fast", before, replayer.row(before.batch, before.budgets, twice))
