"""Rows of the benchmarks, read from files and checked: what bench/report.py makes tables and plots of.

Rows are not trusted: what is unknown in them is ignored, what is missing or no number is named with its file and line.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TEXT_LENGTH_MAX = 90
NUMBER_MAX = 1e18  # bytes or seconds; beyond it a float no longer tells whole numbers apart
SECONDS_MIN = 1e-9


class ReportError(Exception):
    """A row or a file cannot be used; the text says which and why."""


@dataclass(frozen=True)
class Workload:
    """What must agree before two times are compared."""

    bench: str
    shape: str
    tokens: int
    batch: int = 1
    recompute: bool = False
    layers: int | None = None
    lora: int | None = None  # rank of the adapters, which alone are trained

    def title(self) -> str:
        """In words, for headings and titles."""
        layers = f", {self.layers} layers" if self.layers else ""
        if self.bench == "infer":
            return f"Inference: {self.shape}, {self.tokens} tokens, one forward"
        kind = "recompute" if self.recompute else "no recompute"
        adapters = f", adapters of rank {self.lora}" if self.lora else ""
        return f"Training: {self.shape}{layers}{adapters}, {self.batch} sequences of {self.tokens} tokens, {kind}, one step"


@dataclass(frozen=True)
class Row:
    """One checked line. Without ``peer`` it is tierpage's; with ``failure`` it has no time."""

    workload: Workload
    peer: str | None
    library: str
    budget_bytes: int | None
    seconds: float | None
    bound_seconds: float | None
    plain_seconds: float | None
    fits: bool
    hooks: bool
    equal: str
    driver_bytes: float | None
    failure: str | None
    skipped: bool
    capped: bool


def number(row: dict[str, Any], key: str, where: str, *, needed: bool = True, least: float = 0) -> float | None:
    """A finite number, at least ``least``. Raises ReportError where it is missing though needed, or something else."""
    value = row.get(key)
    if value is None:
        if needed:
            raise ReportError(f'{where}: the row has no "{key}"')
        return None
    # NaN fails the comparison as well.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= NUMBER_MAX:
        raise ReportError(f'{where}: "{key}" is {str(value)[:40]!r}, not a number from {least:g} to {NUMBER_MAX:g}')
    return value


def count(row: dict[str, Any], key: str, where: str, *, needed: bool = True) -> int | None:
    """A number without a fraction."""
    value = number(row, key, where, needed=needed)
    if value is not None and value != int(value):
        raise ReportError(f'{where}: "{key}" is {value!r}, not a whole number')
    return None if value is None else int(value)


def text(row: dict[str, Any], key: str, where: str, *, needed: bool = True) -> str | None:
    """A text that can stand in a cell of a table. Raises ReportError where it is missing though needed, or no text."""
    value = row.get(key)
    if value is None and not needed:
        return None
    if not isinstance(value, str):
        problem = f'the row has no "{key}"' if value is None else f'"{key}" is {value!r}, not a text'
        raise ReportError(f"{where}: {problem}")
    short = " ".join("".join(letter if letter.isprintable() else " " for letter in value).split())
    short = short if len(short) <= TEXT_LENGTH_MAX else short[: TEXT_LENGTH_MAX - 3] + "..."
    # Neither Markdown nor the plot's labels may take it for more than letters ("$" begins a formula in both).
    for letter, shown in (("&", "&amp;"), ("<", "&lt;"), ("|", "&#124;"), ("$", "&#36;"), ("`", "'")):
        short = short.replace(letter, shown)
    return short


def flag(row: dict[str, Any], key: str, where: str, *, needed: bool = True) -> bool:
    """True or false; false where it is missing and not needed."""
    value = row.get(key)
    if value is None and not needed:
        return False
    if not isinstance(value, bool):
        problem = f'the row has no "{key}"' if value is None else f'"{key}" is {value!r}, neither true nor false'
        raise ReportError(f"{where}: {problem}")
    return value


def workload_of(row: dict[str, Any], where: str) -> Workload:
    """The workload of a row."""
    bench, shape, tokens = text(row, "bench", where), text(row, "shape", where), count(row, "tokens", where)
    if bench == "infer":
        return Workload(bench, shape, tokens)
    if bench != "train":
        raise ReportError(f'{where}: "bench" is {bench!r}, neither infer nor train')
    layers = count(row, "layers", where, needed=False)
    lora = count(row, "lora", where, needed=False)
    return Workload(bench, shape, tokens, count(row, "batch", where), flag(row, "recompute", where), layers, lora)


def equality(row: dict[str, Any], where: str) -> str:
    """Whether the result was the plain run's, in words."""
    value = row.get("bits_equal")
    if value is None or isinstance(value, bool):
        return {True: "yes", False: "no", None: "-"}[value]
    return text(row, "bits_equal", where) or "-"


def checked(row: Any, where: str) -> Row:
    """A Row from a line's JSON. Raises ReportError, which names the line and what is wrong with it."""
    if not isinstance(row, dict):
        raise ReportError(f"{where}: not a JSON object")
    workload = workload_of(row, where)
    peer = text(row, "peer", where, needed=False)
    skipped = text(row, "skipped", where, needed=False)
    failure = skipped or text(row, "error", where, needed=False)
    bound_key = "bound_seconds" if workload.bench == "infer" else "bound_seconds_of_moved_bytes"
    budget = count(row, "device_budget_bytes", where, needed=peer != "plain")
    weights = count(row, "weight_bytes", where, needed=False)
    library = text(row, "library", where, needed=False) or ""
    return Row(
        workload=workload, peer=peer,
        library=" ".join(filter(None, (library, text(row, "library_version", where, needed=False)))),
        budget_bytes=budget,
        seconds=None if failure else number(row, "seconds", where, least=SECONDS_MIN),
        bound_seconds=number(row, bound_key, where, needed=peer is None and not failure),
        plain_seconds=number(row, "plain_seconds", where, needed=False, least=SECONDS_MIN),
        fits=bool(weights and budget and budget >= weights + (count(row, "working_set_bytes", where, needed=False) or 0)),
        hooks=flag(row, "hooks", where, needed=False), equal=equality(row, where),
        # The driver's figure can end below the context: memory that is there before the run may go.
        driver_bytes=number(row, "driver_bytes_above_context", where, needed=False, least=-NUMBER_MAX),
        failure=failure, skipped=skipped is not None,
        capped=text(row, "cap", where, needed=False) != "none",
    )  # fmt: skip


def refuse_constant(name: str) -> None:
    """JSON has no NaN and no Infinity."""
    raise ValueError(f"{name} is no JSON number")


def read_rows(paths: Iterable[Path]) -> list[Row]:
    """The rows of some JSON-lines files. Raises ReportError for the first line that is none."""
    rows = []
    for path in paths:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ReportError(f"{path}: {error}") from error
        for index, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}:{index}"
            try:
                row = json.loads(line, parse_constant=refuse_constant)
            except (ValueError, RecursionError) as error:
                raise ReportError(f"{where}: not a line of JSON: {error}") from error
            rows.append(checked(row, where))
    if not rows:
        raise ReportError("no rows")
    return rows
