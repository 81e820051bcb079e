"""The command ``tierpage estimate``."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence

import torch

from tierpage._estimate.answers import Answer, Question, answer
from tierpage._estimate.errors import EstimateError
from tierpage._estimate.machines import Drive, Machine, named, this_machine
from tierpage._estimate.programs import Task
from tierpage._estimate.report import as_json, as_text
from tierpage._estimate.subjects import Subject, callable_named, subject_of
from tierpage.errors import TierpageError
from tierpage.sizes import Size, parse_size

_GB = 1e9
# Options that say what a model is to do, with their defaults.
_OF_MODELS = {
    "mode": "infer", "batch": "1", "tokens": "2048", "inputs": None, "dtype": None, "autocast": None,
    "optimizer": "adamw", "hooks": False, "recompute": False,
}  # fmt: skip
_OF_MACHINES = ("--machine", "--link", "--device-budget", "--host-budget", "--nvme-budget", "--drive", "--compress")
_BATCH_MAX = 1 << 20
_TOKENS_MAX = 1 << 24


def run(options: argparse.Namespace) -> int:
    """Prints the estimate; returns 0 where a row runs, 1 where none does, 2 with one line on stderr where it could
    not be made."""
    try:
        made = estimate(options)
    except (TierpageError, OSError) as error:
        print(f"tierpage estimate: {' '.join(str(error).split())}{_misplaced(options.program)}", file=sys.stderr)
        return 2
    print(as_json(made) if options.json else as_text(made))
    return 0 if made.runs else 1


def estimate(options: argparse.Namespace) -> Answer:
    """The answer to what the command line asks. Raises TierpageError and OSError."""
    mode = options.mode
    if mode != "train" and (options.hooks or options.recompute):
        raise EstimateError(f"--hooks and --recompute are about training, and --mode is {mode}: leave them out.")
    tokens = _number(options.tokens, "--tokens", _TOKENS_MAX)
    batches = tuple(_number(word, "--batch", _BATCH_MAX) for word in options.batch.split(","))
    drives = tuple(_drive(word) for word in options.drive.split(",")) if options.drive else ()
    machine = _machine(options)
    nvme = parse_size(options.nvme_budget, "--nvme-budget", fraction_allowed=False).of(0) if options.nvme_budget else 0
    if nvme and not drives and machine.drive is None:
        raise EstimateError(
            "--nvme-budget is given and the drive is not known: give its rates, such as --drive 3.5:2.5 (GB/s read and "
            "written), or with --machine this a directory on it, --nvme-path."
        )
    if (drives or machine.drive is not None) and not nvme:
        raise EstimateError("a drive is given without --nvme-budget: say how many bytes of it may be used.")
    task = Task(
        mode, batches[0], tokens, options.optimizer, options.hooks, options.recompute,
        getattr(torch, options.dtype) if options.dtype else None, options.autocast,
        callable_named(options.inputs) if options.inputs else None,
    )  # fmt: skip
    if options.program:
        batches = (0,)
    device = _sizes(options.device_budget, "--device-budget")
    here = options.machine == "this"
    # Of another machine's RAM nothing is known that a fraction could be of.
    host = parse_size(options.host_budget, "--host-budget", fraction_allowed=here) if options.host_budget else None
    return answer(
        Question(
            _subject(options), task, machine, tuple(dict.fromkeys(batches)), device, host, nvme, drives,
            not options.quick, here, options.compress,
        )
    )  # fmt: skip


def _misplaced(program: Sequence[str]) -> str:
    """A hint where an option of this command was given to the program that is estimated."""
    found = next((word for word in program[1:] if word.split("=")[0] in _OF_MACHINES), None)
    return f" (What stands after {program[0]!r}, such as {found!r}, is the program's.)" if found else ""


def _subject(options: argparse.Namespace) -> Subject:
    if not options.program:
        return subject_of(options.model)
    for name, default in _OF_MODELS.items():
        if getattr(options, name) != default:
            raise EstimateError(
                f"--{name} is about a model, and {options.program[0]!r} is a program, which has its own: leave it out, or "
                "give it to the program, after its name."
            )
    return Subject(" ".join(options.program), program=tuple(options.program))


def _machine(options: argparse.Namespace) -> Machine:
    up, down = _pair(options.link, "--link") if options.link else (None, None)
    paths = list(options.nvme_path or [])
    if options.machine != "this":
        if paths:
            raise EstimateError("--nvme-path is measured with --machine this only: give --drive READ:WRITE.")
        return named(options.machine).with_links(up, down)
    return this_machine(paths).with_links(up, down)


def _sizes(text: str | None, name: str) -> tuple[Size, ...]:
    sizes = tuple(parse_size(word.strip(), name) for word in text.split(",")) if text else ()
    if any(size.count is not None and size.count < 2 << 20 for size in sizes):
        raise EstimateError(f"{name} {text!r} is less than one page of 2 MiB: write a unit, such as 16GiB.")
    return sizes


def _number(word: str | int, name: str, most: int) -> int:
    try:
        number = int(word)
    except ValueError:
        number = 0
    if not 1 <= number <= most:
        raise EstimateError(f"{name} has {word!r}: give a number from 1 to {most}.")
    return number


def _drive(word: str) -> Drive:
    return Drive(*_pair(word, "--drive"))


def _pair(word: str, name: str) -> tuple[float, float]:
    """Bytes a second of "3.5:2.5" or "3.5", in GB/s."""
    first, _, second = word.partition(":")
    try:
        rates = float(first), float(second or first)
    except ValueError:
        rates = 0.0, 0.0
    if not all(math.isfinite(rate) and 0 < rate <= 1e5 for rate in rates):
        raise EstimateError(f"{name} has {word!r}: give GB/s as READ:WRITE or UP:DOWN, or one number for both.")
    return rates[0] * _GB, rates[1] * _GB
