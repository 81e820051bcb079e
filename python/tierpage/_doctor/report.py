"""A row of the doctor's report, and the report as text, as JSON and as an exit code."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass

OK, WARN, FAIL = "OK", "WARN", "FAIL"


@dataclass(frozen=True)
class Row:
    """One check: ``state`` is OK, WARN (works, but slower or smaller) or FAIL (does not work)."""

    name: str
    state: str
    value: str
    cause: str = ""
    remedy: str = ""


def exit_code(rows: Iterable[Row]) -> int:
    """0: all well, 1: at least one WARN, 2: at least one FAIL."""
    states = {row.state for row in rows}
    return 2 if FAIL in states else 1 if WARN in states else 0


def as_json(rows: list[Row], configuration: str) -> str:
    """The rows, the settings line and the exit code as JSON."""
    return json.dumps(
        {"rows": [asdict(row) for row in rows], "TIERPAGE_CONF": configuration, "exit_code": exit_code(rows)}, indent=2
    )


def as_text(rows: list[Row], configuration: str) -> str:
    """A plain table; cause and remedy below the rows that are not OK; last line: the settings in force."""
    width = max(len(row.name) for row in rows)
    lines = []
    for row in rows:
        lines.append(f"{row.state:<4}  {row.name:<{width}}  {row.value}")
        if row.state != OK:
            lines += [
                f"{'':<{width + 8}}{label}: {text}"
                for label, text in (("cause", row.cause), ("remedy", row.remedy))
                if text
            ]
    counts = [sum(row.state == state for row in rows) for state in (OK, WARN, FAIL)]
    lines.append("")
    lines.append("{} OK, {} WARN, {} FAIL".format(*counts))
    lines.append(f"TIERPAGE_CONF={configuration}")
    return "\n".join(lines)
