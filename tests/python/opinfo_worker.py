"""The process behind test_opinfo.py: one shard of torch's databases, first plain, then paged.

python opinfo_worker.py <shard, such as 0/2> <file for the outcome>
"""

from __future__ import annotations

import faulthandler
import gc
import itertools
import os
import pickle
import re
import subprocess
import sys
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import harness
from database_cases import NOT_PAGED, NOT_REPEATABLE, Case, all_cases

ONLY = os.environ.get("TIERPAGE_OPINFO_ONLY", "")
OPERATOR_SECONDS_MAX = 300
PLAIN_RUNS_MORE = 6


@dataclass
class Difference:
    key: str  # of the case
    name: str  # of the result
    expected: list[str] | None  # of the plain run
    text: str


@dataclass
class Outcome:
    shard: str
    operators: int = 0
    excluded: list[str] = field(default_factory=list)
    compared: int = 0  # results of a sample
    refused: int = 0  # samples that raise, alike in both runs
    operators_compared: int = 0
    backward: int = 0
    inplace: int = 0
    faults: int = 0
    missed: int = 0
    idle: list[str] = field(default_factory=list)  # operators that raise with every sample
    failures: list[str] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)  # that may be the program's own
    unsteady: list[str] = field(default_factory=list)  # results that plain runs do not share either
    seconds: float = 0.0
    started: str | None = None  # the operator that runs now
    done: list[str] = field(default_factory=list)

    def summary(self) -> str:
        return (
            f"shard {self.shard}: {self.operators_compared} of {self.operators} operators ({len(self.excluded)} excluded), "
            f"{self.compared} samples, {self.backward} with gradients, {self.inplace} in place, {self.refused} refused "
            f"alike (all of {', '.join(self.idle) or 'none'}), {self.faults} faults, {self.missed} missed accesses, "
            f"not repeated by plain runs: {', '.join(self.unsteady) or 'none'}, "
            f"{self.seconds:.0f} s"
        )


def selected(shard: str) -> list[Case]:
    index, count = (int(part) for part in shard.split("/"))
    pattern = re.compile(ONLY)
    return [case for n, case in enumerate(all_cases()) if n % count == index and pattern.search(case.key)]


def work_on(shard: str, path: str) -> None:
    """Both runs of a shard. The file at `path` always says how far it came."""
    faulthandler.enable()
    harness.make_deterministic()
    warnings.simplefilter("ignore")
    import tierpage

    start = time.monotonic()
    outcome = read_outcome(path) or Outcome(shard)
    done = set(outcome.done)
    excluded = NOT_REPEATABLE | NOT_PAGED
    work = selected(shard)
    outcome.operators, outcome.excluded = len(work), [case.key for case in work if case.name in excluded]
    work = [case for case in work if case.name not in excluded and case.key not in done]

    plain: dict[str, list[str]] = {}
    for case in work:
        faulthandler.dump_traceback_later(OPERATOR_SECONDS_MAX, exit=True)
        case.run(lambda name, lines, _: plain.__setitem__(name, lines))
    gc.collect()

    def compare(name: str, lines: list[str], worked: bool) -> None:
        expected = plain.pop(name, None)
        outcome.compared += worked
        outcome.refused += not worked
        outcome.backward += worked and name.endswith("gradients")
        outcome.inplace += worked and name.endswith("in place")
        nonlocal useful
        useful = useful or worked
        if expected != lines:
            pairs = [(a, b) for a, b in itertools.zip_longest(expected or [], lines) if a != b]
            text = f"{name}: plain {[a for a, _ in pairs][:3]}, paged {[b for _, b in pairs][:3]}"
            outcome.differences.append(Difference(outcome.started or "", name, expected, text))

    with tempfile.TemporaryDirectory() as folder:
        options = dict(harness.settings("paranoid", folder) or {})
        options["min_paged_bytes"] = 1
        tierpage.enable(**options)
        faults = outcome.faults
        missed = 0
        for case in work:
            key = case.key
            faulthandler.dump_traceback_later(OPERATOR_SECONDS_MAX, exit=True)
            outcome.started, useful = key, False
            write_outcome(path, outcome)
            try:
                case.run(compare)
            except tierpage.TierpageError as error:
                outcome.failures.append(f"{key}: {type(error).__name__}: {str(error)[:300]}")
            if harness.missed_accesses() > missed:
                outcome.failures.append(f"{key}: {harness.missed_accesses() - missed} accesses that nothing announced")
                missed = harness.missed_accesses()
            outcome.operators_compared += useful
            if not useful:
                outcome.idle.append(key)
            outcome.done.append(key)
            outcome.faults = faults + int(tierpage.memory_stats()["faults.count"])
        outcome.missed += missed
        faulthandler.cancel_dump_traceback_later()
        gc.collect()
        tierpage.disable()
    settle_differences(outcome, {case.key: case for case in selected(shard)})
    outcome.started = None
    outcome.seconds += time.monotonic() - start
    write_outcome(path, outcome)


def settle_differences(outcome: Outcome, cases: dict[str, Case]) -> None:
    """Paging is off. A difference counts unless plain runs differ from each other as well (atomic additions on CUDA)."""
    again: dict[str, list[list[str]]] = {}
    for key in {difference.key for difference in outcome.differences} & cases.keys():
        for _ in range(PLAIN_RUNS_MORE):
            cases[key].run(lambda name, lines, _: again.setdefault(name, []).append(lines))
    for difference in outcome.differences:
        if any(lines != difference.expected for lines in again.get(difference.name, [])):
            outcome.unsteady.append(difference.name)
        else:
            outcome.failures.append(difference.text)
    outcome.differences = []


def write_outcome(path: str, outcome: Outcome) -> None:
    with open(path + ".new", "wb") as file:
        pickle.dump(outcome, file)
    os.replace(path + ".new", path)


def read_outcome(path: str) -> Outcome | None:
    if not os.path.exists(path):
        return None
    with open(path, "rb") as file:
        return pickle.load(file)


def run_shard(shard: str) -> Outcome:
    """One shard, with a new process after each operator that ends its process."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "outcome")
        while True:
            code = f"import opinfo_worker; opinfo_worker.work_on({shard!r}, {path!r})"
            done = subprocess.run(
                [sys.executable, "-c", code], env=harness.child_environment(), capture_output=True, text=True, cwd=Path(__file__).parent
            )  # fmt: skip
            outcome = read_outcome(path) or Outcome(shard)
            if done.returncode == 0:
                return outcome
            said = f"{outcome.started}: the process ended with {done.returncode}\n{done.stderr[-4000:]}"
            outcome.failures.append(said)
            if outcome.started is None or outcome.started in outcome.done:
                return outcome  # not an operator's fault: it would come again
            outcome.done.append(outcome.started)
            write_outcome(path, outcome)


def run_shards(shards: list[str]) -> dict[str, Outcome]:
    with ThreadPoolExecutor(max_workers=max(1, os.cpu_count() or 1)) as pool:
        return dict(zip(shards, pool.map(run_shard, shards), strict=True))


if __name__ == "__main__":
    for result in run_shards(sys.argv[1:] or ["0/2", "1/2"]).values():
        print(result.summary(), *result.failures, sep="\n")
