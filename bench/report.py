"""Tables and a plot from the rows that bench/infer.py, bench/train.py and bench/peers/run.py print.

    python bench/report.py sweep.jsonl peers.jsonl [--into docs/page.md] [--plot sweep.png]

The tables are Markdown, in the form of docs/benchmarks.md: to stdout, or between the two marker lines of a file. The plot
shows seconds over the device budget, from where all fits down to the smallest budget that runs; it needs matplotlib.
Rows are not trusted: what is unknown in them is ignored, what is missing or no number is named, and nothing is written.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from report_rows import ReportError, Row, Workload, read_rows

BEGIN, END = "<!-- report: begin -->", "<!-- report: end -->"
COLOURS = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#F0E442", "#999933", "#882255")
MARKERS = "sD^vP*X"


def goal(row: Row) -> str:
    """What was aimed at: a ratio to the bound, or seconds."""
    work = row.workload
    if work.bench == "infer":
        return ("1.05" if work.tokens == 1 else "1.02") if row.fits else "1.10"
    if work.lora:
        return "1.10"
    if work.shape != "3b" or work.layers not in (None, 26):
        return "-"
    if work.batch == 32:
        return "3.82 s" if (row.budget_bytes or 0) >= 40 << 30 else "1.2"
    if row.budget_bytes != 16 << 30:
        return "-"
    if not work.recompute:
        return "1.2"
    return "0.75 s" if row.hooks else "1.15 and 1.0 s"


def size(count_bytes: float | None) -> str:
    """A number of bytes as people write it."""
    if count_bytes is None:
        return "-"
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if count_bytes >= unit:
            return f"{count_bytes / unit:.4g} {name}"
    return f"{count_bytes} B"


def seconds(value: float | None) -> str:
    """Three digits."""
    return "-" if value is None else f"{value:.3g}"


def workloads(rows: list[Row]) -> list[Workload]:
    """In the order in which they come."""
    return list(dict.fromkeys(row.workload for row in rows))


def peers_at(rows: list[Row], budget_bytes: int | None) -> str:
    """The peers that were held to that budget, fastest first."""
    found = [row for row in rows if row.peer not in (None, "plain") and row.capped and row.budget_bytes == budget_bytes]
    timed = sorted((row for row in found if row.seconds is not None), key=lambda row: row.seconds or 0.0)
    words = [f"{row.peer} {seconds(row.seconds)}{' (stale)' if row.equal.startswith('stale') else ''}" for row in timed]
    words += [f"{row.peer} failed" for row in found if row.failure and not row.skipped]
    return ", ".join(words) or "-"


def table(rows: list[Row]) -> Iterator[str]:
    """Lines of one workload: tierpage beside its bound, then the peers one by one."""
    plain = [r.seconds for r in rows if r.peer == "plain" and r.seconds] or [
        r.plain_seconds for r in rows if r.plain_seconds
    ]
    yield f"### {rows[0].workload.title()}"
    yield ""
    if plain:
        yield f"All in device memory: {seconds(statistics.median(plain))} s."
        yield ""
    own = sorted((row for row in rows if row.peer is None), key=lambda row: -(row.budget_bytes or 0))
    if own:
        yield "| case | seconds | bound | ratio | goal | bits equal | peers under the same cap, seconds |"
        yield "| --- | --- | --- | --- | --- | --- | --- |"
    for row in own:
        case = (
            size(row.budget_bytes) + (" (all fits)" if row.fits else "") + (", optimizer in hooks" if row.hooks else "")
        )
        peers = peers_at(rows, row.budget_bytes)
        if row.failure:
            yield f"| {case} | refused: {row.failure} | - | - | {goal(row)} | - | {peers} |"
            continue
        ratio = f"{row.seconds / row.bound_seconds:.2f}" if row.seconds and row.bound_seconds else "-"
        yield f"| {case} | {seconds(row.seconds)} | {seconds(row.bound_seconds)} | {ratio} | {goal(row)} | {row.equal} | {peers} |"
    if own:
        yield ""
    others = [row for row in rows if row.peer is not None and not row.skipped]
    if others:
        yield "| peer | library | cap | seconds | result equals the plain run's | driver's figure above the context |"
        yield "| --- | --- | --- | --- | --- | --- |"
    for row in others:
        time = f"failed: {row.failure}" if row.failure else seconds(row.seconds)
        cap = size(row.budget_bytes) if row.capped else "none"
        driver = "-" if row.driver_bytes is None else size(max(row.driver_bytes, 0))
        yield f"| {row.peer} | {row.library} | {cap} | {time} | {row.equal} | {driver} |"
    if others:
        yield ""
    skipped = dict.fromkeys(f"{row.peer} ({row.failure})" for row in rows if row.skipped)
    if skipped:
        yield f"Not measured: {'; '.join(skipped)}."
        yield ""


def tables(rows: list[Row]) -> str:
    """Every workload's tables."""
    return "\n".join(line for work in workloads(rows) for line in table([row for row in rows if row.workload == work]))


def write_into(path: Path, content: str) -> None:
    """Puts the text between the marker lines of a file. Raises ReportError where they are not there once, in order."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ReportError(f"{path}: {error}") from error
    if lines.count(BEGIN) != 1 or lines.count(END) != 1 or lines.index(BEGIN) > lines.index(END):
        raise ReportError(f"{path}: needs one line {BEGIN} and, after it, one line {END}")
    new = [*lines[: lines.index(BEGIN) + 1], "", *content.rstrip().splitlines(), "", *lines[lines.index(END) :]]
    path.write_text("\n".join(new) + "\n", encoding="utf-8")


def medians(rows: list[Row], what: str) -> tuple[list[float], list[float]]:
    """Budgets in GiB, largest first, and the median of a figure at each; what one budget has several of is one point."""
    found: dict[float, list[float]] = {}
    for row in rows:
        value = getattr(row, what)
        if value and row.budget_bytes:  # a bound of 0 has no place on a logarithmic axis
            found.setdefault(row.budget_bytes / 2**30, []).append(value)
    budgets = sorted(found, reverse=True)
    return budgets, [statistics.median(found[budget]) for budget in budgets]


def draw(axes: Any, rows: list[Row]) -> None:
    """One workload: curves of tierpage and the bound, peers as points, lines for the plain run and for refusals."""
    own = [row for row in rows if row.peer is None]
    for hooks in sorted({row.hooks for row in own}):
        kind = [row for row in own if row.hooks == hooks]
        name = "tierpage, optimizer in hooks" if hooks else "tierpage"
        line, colour = (":", "#56B4E9") if hooks else ("--", "#0072B2")
        axes.plot(
            *medians(kind, "bound_seconds"), color="#777777", linestyle=line, marker="_", label=f"bound of {name}"
        )
        axes.plot(*medians(kind, "seconds"), color=colour, marker="o", linewidth=2, label=name)
    plain = [row.seconds for row in rows if row.peer == "plain" and row.seconds] or [
        r.plain_seconds for r in rows if r.plain_seconds
    ]
    if plain:
        axes.axhline(statistics.median(plain), color="#000000", linewidth=0.8, label="all in device memory")
    names = dict.fromkeys(row.peer for row in rows if row.peer not in (None, "plain") and row.seconds is not None)
    for index, name in enumerate(names):
        points = medians([row for row in rows if row.peer == name], "seconds")
        axes.scatter(
            *points, label=name, color=COLOURS[index % len(COLOURS)], marker=MARKERS[index % len(MARKERS)],
            edgecolors="#000000", linewidths=0.5, zorder=3,
        )  # fmt: skip
    for budget in sorted({row.budget_bytes for row in own if row.failure and row.budget_bytes}):
        axes.axvline(budget / 2**30, color="#C00000", linestyle=":", linewidth=1, label=f"{size(budget)}: refused")
    axes.set_yscale("log")
    axes.set_title(rows[0].workload.title(), fontsize=10)
    axes.set_xlabel("device budget, GiB")
    axes.set_ylabel("seconds")
    axes.invert_xaxis()  # from "all fits" down to the least that runs
    axes.grid(True, linewidth=0.3)
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def plot(rows: list[Row], path: Path) -> None:
    """Writes a PNG, one panel for each workload that tierpage was measured on. Raises ReportError without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
    except ImportError as error:
        raise ReportError(f"the plot needs matplotlib: pip install matplotlib ({error})") from error
    timed = [row for row in rows if row.peer is None and row.seconds is not None and row.budget_bytes]
    shown = workloads(timed)
    if not shown:
        raise ReportError("the plot needs at least one row of tierpage with a time and a budget")
    figure = Figure(figsize=(9, 4.2 * len(shown)), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, work in zip(figure.subplots(len(shown), 1, squeeze=False)[:, 0], shown, strict=True):
        draw(axes, [row for row in rows if row.workload == work])
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    figure.savefig(path, format="png", dpi=130)


def main() -> int:
    """Reads everything before it writes anything; exit code 1, with one line that says why, where it cannot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="+", type=Path, help="JSON-lines files")
    parser.add_argument("--into", type=Path, default=None, help=f"a file with the lines {BEGIN} and {END}")
    parser.add_argument("--plot", type=Path, default=None, metavar="PNG")
    args = parser.parse_args()
    try:
        rows = read_rows(args.rows)
        content = tables(rows)
        if args.plot:
            plot(rows, args.plot)
        if args.into:
            write_into(args.into, content)
        else:
            print(content)
    except ReportError as error:
        print(f"report: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
