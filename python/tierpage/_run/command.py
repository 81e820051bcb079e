"""The command ``tierpage run``: reads its part of the command line, switches tierpage on, and hands over."""

from __future__ import annotations

import argparse
import atexit
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress

from tierpage._report.command import check_target, write_report
from tierpage._report.reading import ReportError
from tierpage._run.program import ProgramError, find
from tierpage._run.status import Status, status
from tierpage.api import enable_request, is_enabled
from tierpage.errors import ConfigError, TierpageError, TierpageWarning
from tierpage.memory import memory_summary
from tierpage.settings import COMMAND_LINE, ENVIRONMENT_NAME, Request, parse_request
from tierpage.trace import export_trace, trace_of_now, writable_file

# Options that are settings of the same name.
SETTING_OPTIONS = ("device", "device_budget", "host_budget", "nvme_budget", "nvme_path")
# Options that take no value.
_SWITCHES = ("-h", "--help", "--status", "--no-status", "--summary")


def split(words: Sequence[str], switches: Sequence[str] = _SWITCHES) -> tuple[list[str], list[str]]:
    """Divides the words after a command into its options and those that name the program and belong to it. ``switches``
    are the options that take no value.

    argparse cannot: it looks for options in all words, so that some of the program's would be taken for the command's.
    The program's part begins with a script's name or with "-m".
    """
    position = 0
    while position < len(words):
        word = words[position]
        if word == "--":
            return list(words[:position]), list(words[position + 1 :])
        if word.startswith("-m") and not word.startswith("--"):
            name = [word[2:]] if len(word) > 2 else []
            return list(words[:position]), ["-m", *name, *words[position + 1 :]]
        if not word.startswith("-") or word == "-":
            break
        position += 1 if word in switches or "=" in word else 2
    return list(words[:position]), list(words[position:])


def run(options: argparse.Namespace, words: Sequence[str], unknown: Sequence[str] = ()) -> int:
    """Runs the program that ``words`` name. Returns 0 where it came to its end, 2 where it never began.

    ``unknown`` are words before the program that are no options. What the program raises is raised, for the interpreter
    to report.
    """
    try:
        if unknown:
            raise ConfigError(
                f"there is no option {unknown[0]!r}: `tierpage run --help` lists them, --set gives any other setting, "
                "and what belongs to the program stands after it."
            )
        request = _request(options)
        trace = writable_file(options.trace, "--trace") if options.trace is not None else None
        report = _report_path(options.report, options.trace)
        program = find(words)
        _enable(request)
    except (ProgramError, TierpageError, TierpageWarning, ImportError, OSError) as error:
        return _refuse(error)
    ending = _Ending(options.summary, trace, report, status(options.status))
    try:
        program.load()
    except ProgramError as error:
        return _refuse(error)
    ending.begin()
    program.run()
    return 0


def _refuse(error: Exception) -> int:
    _say(" ".join(str(error).split()))
    return 2


def _say(text: str) -> None:
    print(f"tierpage run: {text}", file=sys.stderr)


def _request(options: argparse.Namespace) -> Request:
    """The settings of the command line, and those of TIERPAGE_CONF where it says nothing. Raises ConfigError."""
    given: dict[str, object] = {name: getattr(options, name) for name in SETTING_OPTIONS}
    for item in options.set:
        name, equals, value = (part.strip() for part in item.partition("="))
        if not equals or not name:
            raise ConfigError(f"--set {item!r} has no {'name' if equals else 'value'}: write --set name=value.")
        if given.get(name) is not None:
            raise ConfigError(f"{name!r} is given twice: keep one.")
        given[name] = value
    request = parse_request(given, os.environ.get(ENVIRONMENT_NAME), COMMAND_LINE)
    device = device_of_rank(request)
    if device is not None:
        request = parse_request({**given, "device": device}, os.environ.get(ENVIRONMENT_NAME), COMMAND_LINE)
    return request


def device_of_rank(request: Request) -> str | None:
    """Under torchrun and its kind: the device of this process, which the program will choose only later."""
    rank = os.environ.get("LOCAL_RANK", "")
    if request.values.get("device", ("cuda", None)) != ("cuda", None) or not rank.isdigit():
        return None
    import torch

    return f"cuda:{rank}" if int(rank) < torch.cuda.device_count() else None


def _report_path(path: str | None, trace: str | None) -> str | None:
    """The same for the page, which may not be where the trace goes. Raises ConfigError."""
    if path is None:
        return None
    path = os.path.abspath(path)
    if trace is not None and os.path.realpath(trace) == os.path.realpath(path):
        raise ConfigError(f"--report and --trace both name {path!r}: give each a file of its own.")
    try:
        check_target(path, remedy="give --report the name of another one")
    except ReportError as error:
        raise ConfigError(f"--report: {error}") from None
    return path


def _enable(request: Request) -> None:
    with warnings.catch_warnings(record=True) as caught:
        enable_request(request)
    for warning in caught:
        _say(str(warning.message))


class _Ending:
    """What comes after the program, at the interpreter's end: its threads are over then, and its own handlers have run.

    Nothing of it changes the exit code. A forked child has no part in it.
    """

    def __init__(self, summary: bool, trace: str | None, report: str | None, line: Status | None) -> None:
        self._summary = summary
        self._trace = trace
        self._report = report
        self._line = line
        self._process = os.getpid()

    def begin(self) -> None:
        """From now on there will be an end; the line is shown until then."""
        atexit.register(self._at_exit)
        if self._line is not None:
            self._line.start()

    def _at_exit(self) -> None:
        if os.getpid() != self._process:
            return
        if self._line is not None:
            self._line.stop()
        with suppress(Exception):  # the program may have closed it, or nobody reads it any more
            if self._summary:
                sys.stdout.flush()
        if (self._summary or self._trace or self._report) and not is_enabled():
            _say("the program has switched tierpage off, so there is no summary, no trace and no report.")
            return
        try:
            if self._trace:
                export_trace(self._trace)
            if self._report:
                write_report(self._report, trace_of_now())
            if self._summary:
                print(memory_summary(), file=sys.stderr)
        except (TierpageError, ReportError, OSError) as error:
            _say(f"no summary, trace or report: {error}")
