"""The command ``tierpage``: run, top, demo, doctor, report, estimate, --version. Also ``python -m tierpage``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong, without the whole usage above it."""

    def error(self, message: str) -> NoReturn:
        """Exit code 2."""
        self.exit(2, f"{self.prog}: {' '.join(message.split())}: `{self.prog} --help` lists what can be given.\n")


def build_parser() -> Parser:
    """The command line's grammar. What it reads has ``error``, that of the command's own part."""
    from tierpage import __version__

    parser = Parser(
        prog="tierpage",
        description="One memory for PyTorch, made of three tiers: VRAM, locked RAM and NVMe.",
        epilog="Exit codes: run those of the program, 2 it could not begin; doctor 0 all well, 1 warnings, 2 failures; "
        "demo 0 equal bits, 1 different, 2 it could not run; report 0 written, 2 not; top 0 shown, 2 not; "
        "estimate 0 it runs, 1 it does not, 2 no estimate.",
    )
    parser.add_argument("--version", action="version", version=f"tierpage {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_run(commands)
    _add_top(commands)
    _add_demo(commands)
    _add_doctor(commands)
    _add_report(commands)
    _add_estimate(commands)
    for command in commands.choices.values():
        command.set_defaults(error=command.error)
    return parser


_RUN: dict[str, Any] = {
    "usage": "tierpage run [option ...] (SCRIPT | FOLDER | ZIP | -m MODULE) [argument ...]",
    "description": "Switches tierpage on and runs a Python program as python itself would. What stands after the program "
    "belongs to it. Settings that are not given come from TIERPAGE_CONF, else from their defaults.",
    "allow_abbrev": False,
}


def _add_run(commands: argparse._SubParsersAction[Parser]) -> None:
    _declare_run(commands.add_parser("run", help="run a program that is not edited, with its tensors paged", **_RUN))


def _declare_run(run: argparse.ArgumentParser) -> argparse.ArgumentParser:
    run.add_argument("--device", default=None, help="cpu, cuda or cuda:<index> (default: the current CUDA device)")
    run.add_argument("--device-budget", default=None, help='bytes in device memory, e.g. "20GiB" or "50%%"')
    run.add_argument("--host-budget", default=None, help="bytes in RAM")
    run.add_argument("--nvme-budget", default=None, help="bytes on disk")
    run.add_argument(
        "--nvme-path",
        action="append",
        default=None,
        help="directory of the NVMe tier; repeat it for several drives (default: no NVMe tier)",
    )
    run.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any other setting of docs/tuning.md; repeat it",
    )
    run.add_argument(
        "--status",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="a line on stderr: what is in the tiers, what moves, what is waited for (default: on a terminal)",
    )
    run.add_argument("--summary", action="store_true", help="at the end, print tierpage.memory_summary() to stderr")
    run.add_argument("--trace", default=None, metavar="FILE", help="at the end, write a Chrome trace")
    run.add_argument("--report", default=None, metavar="FILE", help="at the end, write the page of `tierpage report`")
    return run


def _add_top(commands: argparse._SubParsersAction[Parser]) -> None:
    from tierpage._top.command import interval, process

    top = commands.add_parser(
        "top",
        help="show what programs that page are doing now",
        description="Shows what programs of this user that page are doing now: what is in the tiers, what moves, what "
        "is waited for. q or Ctrl-C ends it. Where stdout is no terminal it looks once and ends.",
    )
    top.add_argument(
        "pid", nargs="?", type=process, metavar="PID", help="all about this process (default: a row for each)"
    )
    top.add_argument("--interval", type=interval, default=1.0, metavar="SECONDS", help="between two looks (default: 1)")
    top.add_argument("--once", action="store_true", help="look once, as text; rates are of one interval")
    top.add_argument("--json", action="store_true", help="look once, as JSON")


def _add_demo(commands: argparse._SubParsersAction[Parser]) -> None:
    demo = commands.add_parser(
        "demo",
        help="train a small GPT in too little memory and compare every bit with a plain run",
        description="Trains a byte-level GPT on the sources of Python's standard library, with states at least 4 times "
        "the device budget, compares every loss and every parameter with a plain run, and writes some text.",
    )
    demo.add_argument(
        "--size",
        default=None,
        help='parameters + gradients + optimizer states, e.g. "40GB" (default: 256MiB, 8GB on a GPU)',
    )
    demo.add_argument("--device", default=None, help="cpu, cuda or cuda:<index> (default: a GPU if there is one)")
    demo.add_argument(
        "--device-budget", "--budget", default=None, help="bytes in device memory (default: a quarter of the states)"
    )
    demo.add_argument("--host-budget", default=None, help="bytes in RAM (default: a quarter of the states)")
    demo.add_argument(
        "--nvme-path",
        action="append",
        default=None,
        help="directory of the NVMe tier; repeat it for several drives (default: a local temporary directory)",
    )
    demo.add_argument("--steps", type=int, default=8, help="training steps (default: 8)")
    demo.add_argument("--batch", type=int, default=2, help="sequences in a step (default: 2)")
    demo.add_argument("--text-bytes", type=int, default=48, help="bytes of text to write at the end (default: 48)")
    demo.add_argument("--seed", type=int, default=0, help="seed of weights and text (default: 0)")
    demo.add_argument("--trace", default=None, metavar="FILE", help="write a Chrome trace of the paged run")


def _add_doctor(commands: argparse._SubParsersAction[Parser]) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="check this machine and measure its links",
        description="Checks driver, memory, disk and settings, measures each link, and names a remedy for what is wrong.",
    )
    doctor.add_argument(
        "path",
        nargs="*",
        default=None,
        metavar="PATH",
        help="directory for the NVMe tier, several: one on each drive (default: from TIERPAGE_CONF, else here)",
    )
    doctor.add_argument("--json", action="store_true", help="the same fields as JSON")
    doctor.add_argument("--no-speed", action="store_true", help="do not measure the links")


def _add_report(commands: argparse._SubParsersAction[Parser]) -> None:
    report = commands.add_parser(
        "report",
        help="make one HTML page from a trace",
        description="Makes one HTML page, which needs nothing else, from a trace of tierpage.export_trace, "
        "`tierpage run --trace` or `tierpage demo --trace`: totals, a time line, who waited for what, what would have "
        "helped.",
    )
    report.add_argument("trace", metavar="TRACE", help="the trace, as it is or compressed (.gz)")
    report.add_argument(
        "-o", "--output", default=None, metavar="FILE", help="- is stdout (default: the trace's name with .html)"
    )


def _add_estimate(commands: argparse._SubParsersAction[Parser]) -> None:
    estimate = commands.add_parser(
        "estimate",
        help="say whether a model runs in a budget, and how fast, without loading it",
        description="Records a model's program on fake tensors, replays it with the pager that production runs on the "
        "model of a machine, and says: what it needs at least, seconds a step, bytes moved, the bound, and what more "
        "memory, a larger batch or a faster drive would change. No weights, no GPU.",
        allow_abbrev=False,  # what stands before a program's name is told from its value by its whole name
    )
    estimate.add_argument(
        "model",
        metavar="MODEL",
        help="module:factory, a folder or config.json of transformers, a .safetensors file; or a program: SCRIPT.py or "
        "-m MODULE, and its arguments",
    )
    estimate.add_argument("--mode", choices=("infer", "decode", "train"), default="infer", help="default: infer")
    estimate.add_argument("--batch", default="1", help='sequences in a step; several: "4,8" (default: 1)')
    estimate.add_argument("--tokens", default="2048", help="of each sequence (default: 2048)")
    estimate.add_argument("--inputs", default=None, metavar="MODULE:CALLABLE", help="makes inputs of (batch, tokens)")
    estimate.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default=None, help="of parameters")
    estimate.add_argument(
        "--autocast",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="run in bfloat16 (default: where float32 parameters are trained)",
    )
    estimate.add_argument(
        "--optimizer", choices=("adamw", "adam", "sgd", "momentum"), default="adamw", help="default: adamw"
    )
    estimate.add_argument("--hooks", action="store_true", help="each parameter steps as its gradient is ready")
    estimate.add_argument("--recompute", action="store_true", help="checkpoint the entries of each ModuleList")
    estimate.add_argument(
        "--machine",
        default="this",
        help="this (default: measured, needs a GPU), or rtx4090, h100, ...: docs/estimate.md",
    )
    estimate.add_argument("--link", default=None, metavar="UP:DOWN", help="GB/s of the bus (default: the machine's)")
    estimate.add_argument("--device-budget", default=None, help='bytes in VRAM; several: "16GiB,8GiB" (default: 95 %%)')
    estimate.add_argument("--host-budget", default=None, help="bytes in RAM (default: this machine's, else plenty)")
    estimate.add_argument("--nvme-budget", default=None, help="bytes on disk (default: none)")
    estimate.add_argument(
        "--compress",
        choices=("auto", "off", "on"),
        default="auto",
        help="whether pages in RAM and on disk are coded, as the setting of that name (default: auto)",
    )
    estimate.add_argument("--drive", default=None, metavar="READ:WRITE", help='GB/s; several: "3.5:2.5,7:5"')
    estimate.add_argument(
        "--nvme-path", action="append", default=None, help="directory to measure, with --machine this"
    )
    estimate.add_argument("--quick", action="store_true", help="leave out what would change")
    estimate.add_argument("--json", action="store_true", help="the same as JSON")


def run_estimate(options: argparse.Namespace) -> int:
    """Prints an estimate; returns 0 where it runs, 1 where it does not, or 2 with the reason on stderr."""
    from tierpage._estimate.command import run

    return run(options)


def run_report(options: argparse.Namespace) -> int:
    """Writes the page of a trace; returns 0, or 2 with the reason on stderr."""
    from tierpage._report.command import run

    return run(options)


def run_top(options: argparse.Namespace) -> int:
    """Shows what programs do; returns 0, or 2 with the reason on stderr."""
    from tierpage._top.command import run

    return run(options)


def run_doctor(options: argparse.Namespace) -> int:
    """Prints the doctor's report; returns 0, 1 or 2."""
    from tierpage._doctor.checks import examine
    from tierpage._doctor.machine import DoctorMachine
    from tierpage._doctor.report import as_json, as_text, exit_code

    machine = DoctorMachine(options.path)
    rows = examine(machine, measure=not options.no_speed)
    configuration = machine.configuration()
    print(as_json(rows, configuration) if options.json else as_text(rows, configuration))
    return exit_code(rows)


def run_demo(options: argparse.Namespace) -> int:
    """Runs the demo; returns 0 (equal bits), 1 (different) or 2 (could not run, with the reason on stderr)."""
    from tierpage import demo, native
    from tierpage.errors import TierpageError

    try:
        native.check()  # before a child process does
        return demo.run(demo.Options.from_command_line(options))
    except (TierpageError, ImportError, OSError) as error:
        print(f"tierpage demo: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "doctor": run_doctor, "demo": run_demo, "report": run_report, "top": run_top, "estimate": run_estimate
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code. Usage errors exit with 2, after one line on stderr.

    ``run`` raises what the program raises.
    """
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == ["run"]:
        from tierpage._run.command import run, split

        own, program = split(words[1:])
        options, unknown = _declare_run(Parser("tierpage run", **_RUN)).parse_known_args(own)
        return run(options, program, unknown)
    parser = build_parser()
    words, program = _estimated(words)
    options, unknown = parser.parse_known_args(words)
    options.program = program
    if unknown or options.command not in COMMANDS:
        error = options.error if words[0] == options.command else parser.error
        error(f"unrecognized arguments: {' '.join(unknown or words)}")
    if sys.stdout is None:
        return _no_output(options.command, "stdout is closed")
    try:
        code = COMMANDS[options.command](options)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _leave_stdout()
        return 141
    except OSError as error:  # all others are told of where they happen
        _leave_stdout()
        return _no_output(options.command, error.strerror or str(error))


_ESTIMATE_SWITCHES = ("-h", "--help", "--autocast", "--no-autocast", "--hooks", "--recompute", "--quick", "--json")


def _estimated(words: Sequence[str]) -> tuple[Sequence[str], list[str]]:
    """The words without those of the program that is to be estimated, which stands where a model would; and those."""
    if words[:1] != ["estimate"]:
        return words, []
    from tierpage._run.command import split

    own, program = split(words[1:], _ESTIMATE_SWITCHES)
    if not program or not (program[0] == "-m" or program[0].endswith(".py")):
        return words, []
    return ["estimate", *own, program[0].lstrip("-")], program


def _no_output(command: str, reason: str) -> int:
    print(f"tierpage {command}: cannot write the output: {reason}. Send it elsewhere.", file=sys.stderr)
    return 2


def _leave_stdout() -> None:
    """What could not be written would be tried again, and told of again, at the interpreter's end."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
