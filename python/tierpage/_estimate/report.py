"""An answer as text and as JSON."""

from __future__ import annotations

import json
from typing import Any

from tierpage._estimate.answers import Answer, Change, Question, batch_words
from tierpage._estimate.programs import Recording
from tierpage._estimate.replaying import Row
from tierpage.system import format_bytes

__all__ = ["as_json", "as_text"]

# The usual rule for training with Adam in mixed precision: weights and gradients of two bytes and float32 weights and
# both moments are 16 bytes a parameter (Rajbhandari et al., "ZeRO", 2020, section 3.1); float32 gradients too make it 20.
RULE_BYTES_MIN, RULE_BYTES_MAX = 16, 20
_GB = 1e9


def as_json(answer: Answer) -> str:
    """Everything, sizes in bytes and times in seconds; ``rows`` in the order in which they were asked for."""
    question = answer.question
    first = question.batches[0]
    recording = answer.recordings[first]
    out: dict[str, Any] = {
        "subject": question.subject.name,
        "mode": "program" if question.subject.program else question.task.mode,
        "tokens": None if question.subject.program else question.task.tokens,
        "machine": {
            "name": question.machine.name,
            "device_bytes": question.machine.device_bytes,
            "up_bytes_per_second": question.machine.up_rate,
            "down_bytes_per_second": question.machine.down_rate,
        },
        "compress": question.compress,
        "code_ratio": recording.code_ratio,
        "parameters": recording.parameters,
        "trained_parameters": recording.trained_parameters,
        "parameter_bytes": recording.parameter_bytes,
        "batches": [_batch(answer, batch) for batch in answer.recordings],
        "rows": [_row(row) for row in answer.rows],
        "changes": [_change(change) for change in answer.changes],
    }
    if recording.trains:
        count = recording.trained_parameters
        out["training_rule"] = {
            "bytes_min": RULE_BYTES_MIN * count,
            "bytes_max": RULE_BYTES_MAX * count,
            "held_bytes_per_parameter": recording.held_bytes / count,
            "alive_bytes_per_parameter": recording.alive_bytes / count,
        }
    return json.dumps(out, indent=2)


def _batch(answer: Answer, batch: int) -> dict[str, Any]:
    recording = answer.recordings[batch]
    out: dict[str, Any] = {
        "batch": batch or None,
        "operators": recording.operators,
        "held_bytes": recording.held_bytes,
        "alive_bytes_max": recording.alive_bytes,
        "compute_seconds": recording.compute_seconds,
        "autocast": recording.autocast,
        "uncounted_operators": recording.uncounted,
        "numbers_read": recording.numbers_read,
    }
    if batch in answer.working_sets:
        found = answer.working_sets[batch]
        out["working_set_bytes"] = found.bytes
        out["largest_operator"] = found.operator
        out["largest_operator_bytes"] = found.operator_bytes
    return out


def _row(row: Row) -> dict[str, Any]:
    out: dict[str, Any] = {
        "batch": row.batch or None,
        "device_budget_bytes": row.budgets.device,
        "host_budget_bytes": row.budgets.host,
        "nvme_budget_bytes": row.budgets.nvme,
        "runs": not row.refusal,
    }
    if row.drive is not None:
        out |= {
            "drive_read_bytes_per_second": row.drive.read,
            "drive_write_bytes_per_second": row.drive.write,
        }
    if row.refusal:
        return out | {"refusal": row.refusal}
    return out | {
        "all_fits_device": not row.moves,
        "seconds": row.seconds,
        "first_step_seconds": row.first_seconds,
        "steady": row.steady,
        "bound_seconds": row.bound_seconds,
        "compute_seconds": row.compute_seconds,
        "up_bytes": row.up_bytes,
        "down_bytes": row.down_bytes,
        "drive_read_bytes": row.drive_read_bytes,
        "drive_write_bytes": row.drive_write_bytes,
        "code_ring_bytes": row.ring_bytes,
        "saved_up_bytes": row.saved_up_bytes,
        "saved_down_bytes": row.saved_down_bytes,
        "limit": row.limit,
    }


def _change(change: Change) -> dict[str, Any]:
    return {"what": change.what, "seconds_per_sequence_factor": change.factor, "row": _row(change.after)}


def as_text(answer: Answer) -> str:
    """The facts, the table of rows, and what would change."""
    lines = [*_facts(answer), "", *_table(answer.rows), *_refusals(answer.rows)]
    if answer.changes:
        before = answer.changes[0].before
        lines += [
            "",
            f"Against {batch_words(before.batch)} with {format_bytes(before.budgets.device)} ({before.seconds:.4g} s):",
        ]
        lines += [f"  {_change_line(change)}" for change in answer.changes]
    return "\n".join(lines)


def _facts(answer: Answer) -> list[str]:
    question = answer.question
    machine = question.machine
    recording = answer.recordings[question.batches[0]]
    rows = [
        ("model", f"{question.subject.name}: {recording.parameters / 1e9:.3f} billion parameters, {_gb(recording.parameter_bytes)}"),
        ("machine", f"{machine.name}: {format_bytes(machine.device_bytes)}, up {machine.up_rate / _GB:.1f} GB/s, down {machine.down_rate / _GB:.1f} GB/s"),
    ]  # fmt: skip
    for batch in question.batches:
        each, found = answer.recordings[batch], answer.working_sets[batch]
        rows += [
            ("program", f"{_program(question, batch)}: {each.operators} operators, {_gb(each.held_bytes)} held between steps, {_gb(each.alive_bytes)} alive at most"),
            ("working set", f"{format_bytes(found.bytes)} is the least device budget; the largest operator, {found.operator}, needs {format_bytes(found.operator_bytes)} at once"),
        ]  # fmt: skip
    if recording.trains:
        rows.append(("usual rule", _rule(recording)))
    rows.append(("page code", _page_code(answer)))
    if question.subject.tensors:
        rows.append(("not known", "activations: a checkpoint's header has none; each tensor is taken to be read once"))
    if recording.numbers_read:
        rows.append(
            ("not known", f"{recording.numbers_read} numbers that the program read from tensors: 1 was taken for each")
        )
    if recording.uncounted:
        rows.append(
            (
                "not known",
                f"arithmetic of {', '.join(recording.uncounted)}: the time of their memory traffic counts alone",
            )
        )
    return [f"{name:<12} {text}" for name, text in rows]


def _program(question: Question, batch: int) -> str:
    if question.subject.program:
        return "a step"
    return f"{question.task.mode}, batch {batch}, {question.task.tokens} tokens"


def _page_code(answer: Answer) -> str:
    ratio, setting = answer.recordings[answer.question.batches[0]].code_ratio, answer.question.compress
    if setting == "off":
        return "off"
    if not any(row.ring_bytes for row in answer.rows):
        return f"{setting}: no budget here has room for its ring"
    by = "by the dtypes of the parameters"
    return f"{setting}: {f'codes take {ratio:.2f} of their pages' if ratio < 1 else 'nothing gets shorter'}, {by}"


def _rule(recording: Recording) -> str:
    count = recording.trained_parameters
    return (
        f"{RULE_BYTES_MIN} to {RULE_BYTES_MAX} bytes a parameter for Adam in mixed precision, "
        f"{RULE_BYTES_MIN * count / _GB:.1f} to {RULE_BYTES_MAX * count / _GB:.1f} GB; this program holds "
        f"{recording.held_bytes / count:.1f} bytes a trained parameter between steps, {recording.alive_bytes / count:.1f} at most"
    )


def _table(rows: list[Row]) -> list[str]:
    with_drive = any(row.drive is not None for row in rows)
    with_ring = any(row.ring_bytes for row in rows)
    heads = ["batch", "device", *["ring"] * with_ring, "RAM"]
    heads += ["s a step", "bound", "ratio", "kernels", "up GB", "down GB"]
    heads += (["drive GB/s", "read GB", "written GB"] if with_drive else []) + ["limit"]
    lines = [heads, *(_cells(row, with_ring, with_drive) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    return ["  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def _cells(row: Row, with_ring: bool, with_drive: bool) -> list[str]:
    ring = [format_bytes(row.ring_bytes) if row.ring_bytes else "-"] * with_ring
    cells = [str(row.batch or "-"), format_bytes(row.budgets.device), *ring, format_bytes(row.budgets.host)]
    drive = ["-"] if row.drive is None else [f"{row.drive.read / _GB:g}:{row.drive.write / _GB:g}"]
    if row.refusal:
        return [*cells, *["-"] * 6, *([*drive, "-", "-"] if with_drive else []), "does not run"]
    cells += [
        f"{row.seconds:.4g}" + ("" if row.steady else " ~"),
        f"{row.bound_seconds:.4g}",
        f"{row.seconds / row.bound_seconds:.2f}" if row.bound_seconds else "-",
        f"{row.compute_seconds:.4g}",
        f"{row.up_bytes / _GB:.2f}",
        f"{row.down_bytes / _GB:.2f}",
    ]
    if with_drive:
        cells += [*drive, f"{row.drive_read_bytes / _GB:.2f}", f"{row.drive_write_bytes / _GB:.2f}"]
    return [*cells, row.limit if row.moves else "all fits: kernels"]


def _refusals(rows: list[Row]) -> list[str]:
    lines = [
        f"{format_bytes(row.budgets.device)}, {batch_words(row.batch)}: {row.refusal}" for row in rows if row.refusal
    ]
    if any(not row.refusal and not row.steady for row in rows):
        lines.append("~ steps still differ from each other: the last one is shown")
    return [""] * bool(lines) + lines


def _change_line(change: Change) -> str:
    row = change.after
    if row.refusal:
        return f"{change.what}: does not run: {row.refusal}"
    return f"{change.what}: {row.seconds:.4g} s a step, {change.factor:.2f} x the time a sequence; limit: {row.limit}"


def _gb(count: int) -> str:
    return f"{count / _GB:.2f} GB"
