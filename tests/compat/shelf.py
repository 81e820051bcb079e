"""The shelf: small programs of other people's libraries, which are run plain and paged and compared bit for bit.

A program says which library it is of and what about it is special. It takes a `harness.Run` and returns what must be
equal. ``run.between()`` stands between two steps: there the paged run uses as much other memory as the budget has.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from harness import Report, Results, Run, differences

Values = dict[str, Any]
Function = Callable[[Run], Values]


DISTRIBUTIONS = {"pyro": "pyro-ppl"}  # of packages whose module has another name


@dataclass(frozen=True)
class Program:
    """One program of the shelf."""

    name: str
    library: str
    about: str

    def missing(self) -> bool:
        return importlib.util.find_spec(self.library) is None

    def library_version(self) -> str:
        return version(DISTRIBUTIONS.get(self.library, self.library))


@dataclass(frozen=True)
class Row:
    """How one program ended in one configuration."""

    program: Program
    configuration: str
    trouble: str  # empty: equal bits, or there are none to compare; and pages moved
    repeats: bool  # a plain run has the bits of another one, as far as that was looked at
    faults: int
    plain_seconds: float
    paged_seconds: float


PROGRAMS: list[Program] = []


def program(library: str, about: str) -> Callable[[Function], Function]:
    """Puts a function on the shelf."""

    def put(function: Function) -> Function:
        PROGRAMS.append(Program(function.__name__, library, about))
        return function

    return put


def stepped(run: Run, model: Any, optimizer: Any, loss: Callable[[], Any], steps: int = 3) -> Values:
    """Steps of the optimizer, each after the backward pass of what ``loss`` returns; the losses and all parameters."""
    found = []
    for _ in range(steps):
        value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(value.detach())
        run.between()
    return {"losses": found, "parameters": dict(model.named_parameters())}


def repeated(run: Run, compute: Callable[[], Any], count: int = 2) -> Values:
    """What ``compute`` returns, called again after other memory was used."""
    values: Values = {}
    for turn in range(count):
        values[f"turn_{turn}"] = compute()
        run.between()
    return values


def let_workers_find_programs() -> None:
    """Puts this folder on the path of the processes that run programs."""
    folder = str(Path(__file__).resolve().parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))


def trouble_of(plain: Report, paged: Report) -> str:
    """What is wrong with a paged run, beside the plain one; empty if nothing is."""
    if plain.error is not None:
        return f"the plain run failed: {plain.error.strip().splitlines()[-1]}"
    if paged.error is not None:
        return f"the paged run failed: {paged.error.strip().splitlines()[-1]}"
    if not plain.values:
        return "the program returns nothing to compare"
    if wrong := differences(plain.values, paged.values):
        return "other bits: " + "; ".join(wrong[:3])
    if paged.faults == 0:
        return "nothing was paged: the run proves nothing"
    return f"{paged.missed} accesses that nothing announced" if paged.missed else ""


def rows_of(results: Results, programs: list[Program], configuration: str) -> list[Row]:
    """A row for each program; a program whose plain run does not repeat itself says so."""
    rows = []
    plain_runs, paged_runs = results.of("plain"), results.of(configuration)
    for one in programs:
        plain, paged = plain_runs[one.name], paged_runs[one.name]
        trouble = trouble_of(plain, paged)
        repeats = True
        if trouble.startswith("other bits"):
            repeats = not differences(plain.values, results.of("plain_2")[one.name].values)
            trouble = trouble if repeats else ""
        rows.append(Row(one, configuration, trouble, repeats, paged.faults, plain.seconds, paged.seconds))
    return rows
