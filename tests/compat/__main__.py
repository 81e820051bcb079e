"""Runs the shelf: ``python tests/compat [--only NAME ...] [--configuration NAME ...] [--write FILE]``.

Prints a row for each program and ends with 1 where one fails or differs. ``--write`` puts the table between two marks of
a Markdown file. Programs of a library that is not installed are left out, and named. ``TIERPAGE_TEST_DEVICE`` (cpu, cuda)
picks the device.
"""

from __future__ import annotations

import argparse
import platform
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "python"))

import shelf
import shelf_programs  # noqa: F401  (fills the shelf)

import harness

BEGIN, END = "<!-- the shelf begins -->\n", "<!-- the shelf ends -->\n"


def table(rows: list[shelf.Row]) -> str:
    """The rows as Markdown, one line for each program."""
    import torch

    device = "a CPU" if harness.DEVICE == "cpu" else torch.cuda.get_device_name()
    lines = [f"torch {torch.__version__}, Python {platform.python_version()}, {device}.", ""]
    lines += [
        "Times of programs this small are mostly imports and first calls; [benchmarks](benchmarks.md) have real ones.",
        "",
    ]
    lines += ["| library | program | what is special | bits | times plain |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        one = row.program
        library = f"{one.library} {one.library_version()}"
        lines.append(f"| {library} | `{one.name}` | {one.about} | {outcome(row)} | {slowdown(row)} |")
    return "\n".join(lines) + "\n"


def outcome(row: shelf.Row) -> str:
    if row.trouble:
        return "no"
    return "equal" if row.repeats else "plain runs differ as well"


def slowdown(row: shelf.Row) -> str:
    return f"{row.paged_seconds / row.plain_seconds:.1f}" if row.plain_seconds > 0 else ""


def write(path: Path, text: str) -> None:
    before, _, rest = path.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(before + BEGIN + text + END + after)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these programs, or all of these libraries")
    parser.add_argument("--configuration", nargs="+", default=["prefetch"], help="of tests/python/harness.py")
    parser.add_argument("--write", type=Path, metavar="FILE", help="a Markdown file with the two marks")
    chosen = parser.parse_args()

    wanted = [one for one in shelf.PROGRAMS if not chosen.only or {one.name, one.library} & set(chosen.only)]
    for library in sorted({one.library for one in wanted if one.missing()}):
        print(f"{library} is not installed: its programs are left out")
    programs = [one for one in wanted if not one.missing()]
    shelf.let_workers_find_programs()
    results = harness.Results([one.name for one in programs], "shelf_programs")
    rows = []
    for configuration in chosen.configuration:
        for row in shelf.rows_of(results, programs, configuration):
            times = f"{row.plain_seconds:6.2f} s plain {row.paged_seconds:6.2f} s paged {row.faults:6d} faults"
            print(f"{row.program.name:28} {configuration:14} {times}  {row.trouble or outcome(row)}", flush=True)
            rows.append(row)
    if chosen.write is not None:
        write(chosen.write, table([row for row in rows if row.configuration == chosen.configuration[0]]))
    wrong = sum(1 for row in rows if row.trouble)
    print(f"{len(rows) - wrong} of {len(rows)} equal")
    return 1 if wrong or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
