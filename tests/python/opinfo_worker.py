"""The process behind test_opinfo.py: one shard of the operator database, first plain, then paged.

python opinfo_worker.py <shard, such as 0/2> <file for the outcome>
"""

from __future__ import annotations

import copy
import faulthandler
import gc
import hashlib
import itertools
import os
import pickle
import re
import subprocess
import sys
import tempfile
import time
import types
import unittest
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import harness

FULL = os.environ.get("TIERPAGE_OPINFO_FULL") == "1"
ONLY = os.environ.get("TIERPAGE_OPINFO_ONLY", "")
SAMPLES = 10**9 if FULL else 2
OPERATOR_SECONDS_MAX = 300

# Operators whose results two plain runs do not share.
NOT_REPEATABLE = {
    "empty": "uninitialised memory",
    "empty_like": "uninitialised memory",
    "empty_permuted": "uninitialised memory",
    "empty_strided": "uninitialised memory",
    "new_empty": "uninitialised memory",
    "new_empty_strided": "uninitialised memory",
    "resize_": "grows into uninitialised memory",
    "resize_as_": "grows into uninitialised memory",
    "linalg.lstsq": "LAPACK's gelsy reads uninitialised pivots: each run takes another order",
}
# Operators that do not use paged memory the way that this test can compare.
NOT_PAGED = {
    "nn.functional.ctc_loss": "a composite reads the table of lengths, always on the host, by raw pointer: the fault handler serves it",
    "nn.functional.max_pool1d": "without gradients a composite of the CPU reads its input by raw pointer: likewise",
}


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
    seconds: float = 0.0
    started: str | None = None  # the operator that runs now
    done: list[str] = field(default_factory=list)

    def summary(self) -> str:
        return (
            f"shard {self.shard}: {self.operators_compared} of {self.operators} operators ({len(self.excluded)} excluded), "
            f"{self.compared} samples, {self.backward} with gradients, {self.inplace} in place, {self.refused} refused "
            f"alike (all of {', '.join(self.idle) or 'none'}), {self.faults} faults, {self.missed} missed accesses, "
            f"{self.seconds:.0f} s"
        )


def database() -> list[Any]:
    """op_db of the installed torch."""
    if "expecttest" not in sys.modules:
        try:
            import expecttest  # noqa: F401
        except ImportError:  # torch's test modules only derive a class from it
            stand_in = types.ModuleType("expecttest")
            stand_in.TestCase = unittest.TestCase
            sys.modules["expecttest"] = stand_in
    from torch.testing._internal.common_methods_invocations import op_db

    return list(op_db)


def selected(shard: str) -> list[tuple[int, Any]]:
    index, count = (int(part) for part in shard.split("/"))
    pattern = re.compile(ONLY)
    return [(n, op) for n, op in enumerate(database()) if n % count == index and pattern.search(op.formatted_name)]


def dtypes_of(op: Any) -> list[Any]:
    import torch

    kinds = [torch.float32, torch.int64]
    if FULL:
        kinds += [torch.float64, torch.complex64, torch.bfloat16, torch.bool, torch.uint8]
    supported = op.supported_dtypes(harness.DEVICE)
    chosen = [kind for kind in kinds if kind in supported]
    return chosen or sorted(supported, key=str)[:1]


def tensors_of(value: Any) -> Iterator[Any]:
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_of(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_of(item)


def fingerprint(value: Any) -> list[str]:
    """One line per leaf: kind, shape, and a hash of the bits."""
    lines = []
    for name, leaf in harness.flat("", value):
        made = harness.bits(leaf)
        if isinstance(made, tuple):
            lines.append(f"{name} {made[0]}{list(made[1]) if isinstance(made[1], tuple) else ''} {digest(made)}")
        else:
            lines.append(f"{name} {type(leaf).__name__} {made if isinstance(made, int | float | str) else ''}")
    return lines


def digest(value: Any) -> str:
    return hashlib.sha1(pickle.dumps(value)).hexdigest()[:12]


def attempt(work: Callable[[], Any]) -> tuple[list[str], bool]:
    """Fingerprint of the result, or the class of what it raised."""
    import tierpage

    try:
        return fingerprint(work()), True
    except tierpage.TierpageError:
        raise
    except Exception as error:
        return [f"raises {type(error).__name__}"], False


def results_of(op: Any, key: str, on: Callable[[str, list[str], bool], None]) -> None:
    """Runs all samples of one operator; `on` gets a name, a fingerprint, and whether it worked, for each result."""
    import torch

    for dtype in dtypes_of(op):
        harness.seed_everything()
        try:
            samples = list(itertools.islice(op.sample_inputs(harness.DEVICE, dtype, requires_grad=False), SAMPLES))
        except (RuntimeError, NotImplementedError, ValueError, TypeError, ImportError) as error:
            if type(error).__module__.startswith("tierpage"):
                raise
            on(f"{key} {dtype} samples", [f"raises {type(error).__name__}"], False)
            continue
        for number, sample in enumerate(samples):
            name = f"{key} {dtype} sample {number}"
            inplace = copy.deepcopy(sample) if number == 0 and op.inplace_variant is not None else None
            harness.seed_everything()
            on(name, *attempt(lambda s=sample: [op.op(s.input, *s.args, **s.kwargs), s.input, s.args, s.kwargs]))
            if inplace is not None:
                harness.seed_everything()
                on(
                    f"{name} in place",
                    *attempt(lambda s=inplace: [op.inplace_variant(s.input, *s.args, **s.kwargs), s.input]),
                )
        if (
            op.supports_autograd
            and dtype in (torch.float32, torch.complex64)
            and dtype in op.supported_backward_dtypes(harness.DEVICE)
        ):
            harness.seed_everything()
            try:
                sample = next(iter(op.sample_inputs(harness.DEVICE, dtype, requires_grad=True)), None)
            except Exception as error:
                if type(error).__module__.startswith("tierpage"):
                    raise
                sample = None
            if sample is not None:
                harness.seed_everything()
                on(f"{key} {dtype} gradients", *attempt(lambda s=sample: gradients(op, s)))


def gradients(op: Any, sample: Any) -> Any:
    import torch

    outputs = op.op(sample.input, *sample.args, **sample.kwargs)
    if sample.output_process_fn_grad is not None:
        outputs = sample.output_process_fn_grad(outputs)
    outputs = [t for t in tensors_of(outputs) if t.requires_grad]
    inputs = [t for t in tensors_of([sample.input, sample.args, sample.kwargs]) if t.requires_grad and t.is_leaf]
    if not outputs or not inputs:
        raise ValueError("nothing to derive")
    return torch.autograd.grad(outputs, inputs, [torch.ones_like(t) for t in outputs], allow_unused=True)


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
    work = [(f"{op.formatted_name}", op) for _, op in selected(shard)]
    outcome.operators, outcome.excluded = len(work), [key for key, op in work if op.name in excluded]
    work = [(key, op) for key, op in work if op.name not in excluded and key not in done]

    plain: dict[str, list[str]] = {}
    for key, op in work:
        faulthandler.dump_traceback_later(OPERATOR_SECONDS_MAX, exit=True)
        results_of(op, key, lambda name, lines, _: plain.__setitem__(name, lines))
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
            outcome.failures.append(f"{name}: plain {[a for a, _ in pairs][:3]}, paged {[b for _, b in pairs][:3]}")

    with tempfile.TemporaryDirectory() as folder:
        options = dict(harness.settings("paranoid", folder) or {})
        options["min_paged_bytes"] = 1
        tierpage.enable(**options)
        faults = outcome.faults
        missed = 0
        for key, op in work:
            faulthandler.dump_traceback_later(OPERATOR_SECONDS_MAX, exit=True)
            outcome.started, useful = key, False
            write_outcome(path, outcome)
            try:
                results_of(op, key, compare)
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
    outcome.started = None
    outcome.seconds += time.monotonic() - start
    write_outcome(path, outcome)


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
