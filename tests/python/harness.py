"""Runs programs plain and paged in child processes and compares what they return, bit for bit.

A *program* is a function ``program(run) -> dict of tensors and numbers``; `Run` gives it its device. A *worker* is one
process with one configuration that runs many programs, each with the same seeds, and writes one pickled report per
program as soon as it is known. A worker that dies or hangs loses the program that it was in, no other.

``TIERPAGE_TEST_DEVICE`` (cpu, cuda) picks the device of every test.
"""

from __future__ import annotations

import faulthandler
import functools
import gc
import hashlib
import importlib
import os
import pickle
import random
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DEVICE = os.environ.get("TIERPAGE_TEST_DEVICE", "cpu")
SEED = 20240601
PROGRAM_SECONDS_MAX = 120 if DEVICE == "cpu" else 300
MIB = 1024**2


def settings(configuration: str, folder: str) -> dict[str, Any] | None:
    """Arguments of ``tierpage.enable`` for a configuration, None for "plain".

    On the CPU nearly every tensor is paged, in granules of 4 KiB. On CUDA a page is at least 2 MiB.
    """
    cuda = DEVICE != "cpu"
    small = {"min_paged_bytes": 1} if cuda else {"min_paged_bytes": 64, "granule_bytes": 4096, "frame_bytes_max": 65536}
    roomy = {"device_budget": "1GiB" if cuda else "12MiB", "host_budget": "4GiB" if cuda else "64MiB"}
    tight = {"device_budget": "640MiB" if cuda else "1MiB", "host_budget": "128MiB" if cuda else "1MiB"}
    tight |= {"list_run_fraction": 0.02} if cuda else {}  # a page is 2 MiB there: lists would fit otherwise
    disk = {"nvme_path": folder, "nvme_budget": "8GiB" if cuda else "128MiB", "io_workers": 4}
    disk |= {"staging_slots": 4, "staging_slot_bytes": "4MiB" if cuda else 65536}
    common = {"device": DEVICE, **small}
    known: dict[str, dict[str, Any] | None] = {
        "plain": None,
        **dict.fromkeys(REPEATS),
        # Everything unpinned leaves after every operator: one access that nothing announced is a missed access.
        "paranoid": {**common, **roomy, "paranoid": True},
        # Three tiers, no look ahead: pages leave on demand, to RAM and from there to the disk.
        "clock": {**common, **tight, **disk, "policy": "clock", "prefetch": False},
        # As a user has it, but for the sizes.
        "prefetch": {**common, **tight, "host_budget": "4GiB" if cuda else "64MiB", "policy": "auto"},
    }
    # Paranoid mode over the disk: every page goes the whole way.
    known["paranoid_disk"] = {**common, **disk, **tight, "paranoid": True}
    if not cuda:
        known["paranoid_disk"]["device_budget"] = "12MiB"
    return known[configuration]


# More plain runs, for programs whose kernels do not repeat themselves (atomic additions on CUDA).
REPEATS = ("plain_2", "plain_3", "plain_4")

CONFIGURATIONS = ("paranoid", "clock", "prefetch", "paranoid_disk")


READY = "ready"  # the first thing that a worker writes


class Run:
    """What a program knows about the run that it is in."""

    def __init__(self, device: str, ballast: list[Any] | None) -> None:
        self.device = device
        self._ballast = ballast
        self.touched = 0

    def between(self) -> None:
        """Between two steps. Paged without paranoid mode: uses as much other memory as the budget has."""
        if self._ballast is None:
            return
        import torch

        with torch.no_grad():
            for tensor in self._ballast:
                tensor.add_(1)
        self.touched += 1

    def check_ballast(self) -> None:
        for tensor in self._ballast or ():
            assert bool((tensor == self.touched).all()), "the ballast lost a write"


@dataclass
class Report:
    """What one program returned in one configuration."""

    program: str
    values: dict[str, Any] = field(default_factory=dict)  # name -> (dtype, shape, bytes) or a number
    error: str | None = None
    faults: int = 0
    split: int = 0
    missed: int = 0
    disk_bytes: int = 0
    seconds: float = 0.0


def seed_everything(seed: int = SEED) -> None:
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def bits(value: Any) -> Any:
    """A tensor as (dtype, shape, raw bytes), also sparse ones; numbers, text and None as they are."""
    import torch

    if not isinstance(value, torch.Tensor):
        return value
    value = value.detach()
    if value.layout == torch.sparse_coo:
        return ("coo", tuple(value.shape), bits(value._indices()), bits(value._values()), value.is_coalesced())
    if value.layout in (torch.sparse_csr, torch.sparse_bsr):
        return (
            str(value.layout),
            tuple(value.shape),
            bits(value.crow_indices()),
            bits(value.col_indices()),
            bits(value.values()),
        )
    if value.layout in (torch.sparse_csc, torch.sparse_bsc):
        return (
            str(value.layout),
            tuple(value.shape),
            bits(value.ccol_indices()),
            bits(value.row_indices()),
            bits(value.values()),
        )
    if value.is_nested:
        # unbind() is a view: it reads the table of sizes, which here is paged as well, without being an operator of ours.
        return ("nested", bits(torch.nested.to_padded_tensor(value, 0.0)))
    if value.is_quantized:
        return ("quantized", bits(value.int_repr()), str(value.qscheme()))
    plain = value.resolve_conj().resolve_neg().cpu().contiguous()
    if plain.untyped_storage()._cdata == value.untyped_storage()._cdata:
        plain = plain.clone()  # numpy() keeps its memory resident for as long as it lives
    raw = plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b""
    return (str(value.dtype), tuple(value.shape), raw)


def flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Leaves of nested containers with a name each."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from flat(f"{name}.{key}" if name else str(key), item)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from flat(f"{name}[{index}]", item)
    else:
        yield name, value


def digest(value: Any) -> str:
    return hashlib.sha1(pickle.dumps(value, protocol=4)).hexdigest()[:16]


def differences(plain: dict[str, Any], paged: dict[str, Any]) -> list[str]:
    """What differs between the values of two runs, as readable lines."""
    lines = [f"{name}: only in one run" for name in sorted(plain.keys() ^ paged.keys())]
    for name in plain.keys() & paged.keys():
        a, b = plain[name], paged[name]
        if a == b or (a != a and b != b):
            continue
        if isinstance(a, tuple) and isinstance(b, tuple) and a[:2] == b[:2] and isinstance(a[-1], bytes):
            wrong = [i for i in range(min(len(a[-1]), len(b[-1]))) if a[-1][i] != b[-1][i]]
            lines.append(f"{name}: {a[0]}{list(a[1])}: {len(wrong)} of {len(a[-1])} bytes differ, first at {wrong[:1]}")
        else:
            lines.append(f"{name}: {str(a)[:80]} != {str(b)[:80]}")
    return lines


def make_deterministic() -> None:
    """Settings that make a plain run repeat itself bit for bit. Before torch is used."""
    import torch

    torch.set_num_threads(int(os.environ.get("TIERPAGE_TEST_THREADS", "1")))
    if DEVICE != "cpu":
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
        # Filling fresh memory would hide what paging might leave there, and costs an operator for each tensor.
        torch.utils.deterministic.fill_uninitialized_memory = False


def missed_accesses() -> int:
    from tierpage.session import current_or_none

    session = current_or_none()
    return int(session.runtime.missed_accesses()) if session is not None else 0


def make_ballast(options: dict[str, Any]) -> list[Any] | None:
    """Tensors that together fill the device budget once; with a disk also the host's, so that other memory goes there."""
    import torch

    from tierpage.sizes import parse_size

    if options.get("paranoid"):
        return None
    budget = parse_size(options["device_budget"], "device_budget").of(0)
    each = budget // 16
    return [torch.zeros(each // 4, device=DEVICE) for _ in range(31 if options.get("nvme_path") else 15)]


def run_program(program: Callable[[Run], dict[str, Any]], run: Run) -> Report:
    """One program in this process, in whatever configuration is in force."""
    import tierpage

    report = Report(program.__name__)
    before, missed, start = tierpage.memory_stats(), missed_accesses(), time.monotonic()
    seed_everything()
    try:
        values = program(run)
        report.values = {name: bits(value) for name, value in flat("", values)}
        run.check_ballast()
        del values
    except BaseException:
        report.error = traceback.format_exc()
    gc.collect()
    after = tierpage.memory_stats()
    report.faults = int(after.get("faults.count", 0) - before.get("faults.count", 0))
    report.split = int(after.get("operators.split", 0) - before.get("operators.split", 0))
    names = ("writeback_bytes.host_to_nvme", "writeback_bytes.device_to_nvme")
    report.disk_bytes = int(sum(after.get(name, 0) - before.get(name, 0) for name in names))
    report.missed = missed_accesses() - missed
    report.seconds = time.monotonic() - start
    return report


def _worker(configuration: str, source: str, output: str, names: list[str]) -> None:
    """The body of a worker: `source` is the module or file that holds the programs."""
    faulthandler.enable()
    make_deterministic()
    warnings.simplefilter("ignore")
    import tierpage

    programs = importlib.import_module(source)
    with tempfile.TemporaryDirectory(dir=os.environ.get("TIERPAGE_TEST_FOLDER")) as folder, open(output, "ab") as out:
        options = settings(configuration, folder)
        if options is not None:
            tierpage.enable(**options)
        pickle.dump(READY, out)
        out.flush()
        for name in names:
            faulthandler.dump_traceback_later(PROGRAM_SECONDS_MAX, exit=True)
            ballast = make_ballast(options) if options is not None else None
            report = run_program(getattr(programs, name), Run(DEVICE, ballast))
            del ballast
            pickle.dump(report, out)
            out.flush()
        faulthandler.cancel_dump_traceback_later()
        if options is not None:
            gc.collect()
            tierpage.disable()


def child_environment() -> dict[str, str]:
    """Environment of a worker: this folder and the package that is under test come first on its path."""
    import tierpage

    paths = [
        str(Path(__file__).parent),
        *(str(Path(p).parent) for p in tierpage.__path__),
        os.environ.get("PYTHONPATH", ""),
    ]
    fixed = {"PYTHONPATH": os.pathsep.join(dict.fromkeys(filter(None, paths))), "PYTHONHASHSEED": "0"}
    fixed |= {"OMP_NUM_THREADS": os.environ.get("TIERPAGE_TEST_THREADS", "1"), "MKL_NUM_THREADS": "1"}
    fixed |= {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    return {**os.environ, **fixed}


def run_child(
    program: str, *arguments: str, timeout: float = 300, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs Python text in a child; the text finds harness and tierpage. Fails with its output if it fails."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**child_environment(), **(environment or {})}, capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
    return done


def read_reports(path: str) -> list[Any]:
    found = []
    with open(path, "rb") as file:
        while True:
            try:
                found.append(pickle.load(file))
            except EOFError:
                return found
            except pickle.UnpicklingError:  # the worker died while it wrote
                return found


def collect(configuration: str, names: Iterable[str], source: str = "models") -> dict[str, Report]:
    """Reports of all programs in one configuration, from as many workers as it takes."""
    waiting = list(names)
    reports: dict[str, Report] = {}
    while waiting:
        with tempfile.TemporaryDirectory() as folder:
            output = os.path.join(folder, "reports")
            open(output, "wb").close()
            code = f"import harness; harness._worker({configuration!r}, {source!r}, {output!r}, {waiting!r})"
            done = subprocess.run(
                [sys.executable, "-c", code], env=child_environment(), capture_output=True, text=True,
                timeout=PROGRAM_SECONDS_MAX * (len(waiting) + 1),
            )  # fmt: skip
            written = read_reports(output)
            for report in written[1:]:
                reports[report.program] = report
        left = [name for name in waiting if name not in reports]
        said = f"worker ended with {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
        if not written:
            return reports | {name: Report(name, error=f"no worker came up: {said}") for name in waiting}
        if done.returncode != 0:
            # The one it was in; after the last one: while it switched off.
            lost = left[0] if left else waiting[-1]
            reports[lost] = Report(lost, error=said)
        elif left:
            raise AssertionError(said)
        waiting = [name for name in left if name not in reports]
    return reports


class Results:
    """Reports of the selected programs, collected once per configuration on first use."""

    def __init__(self, names: list[str], source: str = "models") -> None:
        self._names, self._source = names, source

    @functools.cache  # noqa: B019  (lives as long as the test session)
    def of(self, configuration: str) -> dict[str, Report]:
        return collect(configuration, self._names, self._source)


def compare(plain: Report, paged: Report) -> None:
    """Fails unless both runs ended well with the same bits."""
    assert plain.error is None, f"the plain run failed:\n{plain.error}"
    assert paged.error is None, f"the paged run failed:\n{paged.error}"
    assert plain.values, "the program returns nothing to compare"
    wrong = differences(plain.values, paged.values)
    assert not wrong, "\n".join(wrong[:20])
