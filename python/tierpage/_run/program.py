"""Runs a script, a folder, a zip file or a module as ``python`` itself would, in a process that has done other things.

What the program can see is as without tierpage: ``sys.argv``, ``sys.path[0]``, the module ``__main__``, tracebacks,
the exit code. Errors and ``SystemExit`` are left to the interpreter, which reports them and ends the process in its own
way.
"""

from __future__ import annotations

import builtins
import contextlib
import importlib.util
import io
import marshal
import os
import pkgutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, SourceFileLoader, SourcelessFileLoader
from types import CodeType, ModuleType, TracebackType
from typing import Any

_HELP = "Give a script, a folder or zip file with __main__.py, or -m and the name of a module"
_PYC_HEADER = 16


class ProgramError(Exception):
    """There is no such program; the message says what to give instead."""


class Program:
    """A program that exists. ``source`` gives its code, and what its module ``__main__`` begins with."""

    def __init__(self, arguments: list[str], source: Callable[[], tuple[CodeType, dict[str, Any]]]) -> None:
        self._arguments = arguments
        self._source = source
        self._main = ModuleType("__main__")
        self._code: CodeType | None = None

    def load(self) -> None:
        """Compiles it. Of a module the packages around it are imported, which is the program's own code already.

        Raises ProgramError where there is no such module in them, and what that code raises.
        """
        sys.argv = self._arguments
        with _own_frames_hidden():
            self._code, attributes = self._source()
        # As the interpreter makes it.
        self._main.__dict__.update(__annotations__={}, __builtins__=builtins, **attributes)

    def run(self) -> None:
        """Runs it, loaded, as ``__main__``, where pickle and multiprocessing look for what it defines. Raises what it
        raises."""
        assert self._code is not None
        sys.modules["__main__"] = self._main
        with _own_frames_hidden():
            exec(self._code, self._main.__dict__)


def find(words: Sequence[str]) -> Program:
    """The program that a command line names, arguments after it, and its folder first on ``sys.path``.

    Runs no code of it. Raises ProgramError where there is none.
    """
    if not words or list(words) == ["-m"] or not words[0]:
        raise ProgramError(f"no program is named. {_HELP}.")
    if words[0] == "-m":
        return _module(words[1], list(words[2:]))
    # As Python has it: absolute, but for the rest as it was given.
    path = os.path.join(os.getcwd(), words[0])
    if pkgutil.get_importer(path) is not None:
        return _container(path, list(words))
    return _script(path, list(words))


def _script(path: str, arguments: list[str]) -> Program:
    try:
        with io.open_code(path) as file:
            content = file.read()
    except OSError as error:
        raise ProgramError(f"cannot open {arguments[0]!r}: {error.strerror}. {_HELP}.") from None
    compiled = content[:4] == importlib.util.MAGIC_NUMBER

    def source() -> tuple[CodeType, dict[str, Any]]:
        loader = (SourcelessFileLoader if compiled else SourceFileLoader)("__main__", path)
        code = marshal.loads(content[_PYC_HEADER:]) if compiled else compile(content, path, "exec", dont_inherit=True)
        return code, {"__file__": path, "__cached__": None, "__loader__": loader, "__package__": None, "__spec__": None}

    _set_first_path(os.path.dirname(os.path.realpath(path)))
    return Program(arguments, source)


def _container(path: str, arguments: list[str]) -> Program:
    """A folder or a zip file."""
    importer = pkgutil.get_importer(path)
    spec = importer.find_spec("__main__", None) if importer is not None else None
    if spec is None or spec.loader is None:
        raise ProgramError(f"{arguments[0]!r} has no __main__.py. {_HELP}.")
    _set_first_path(path, always=True)
    return Program(arguments, lambda: _from_spec(spec))


def _module(name: str, arguments: list[str]) -> Program:
    _set_first_path(os.getcwd())
    top, inside, _ = name.partition(".")
    try:
        spec = importlib.util.find_spec(top) if top else None
    except (ImportError, ValueError):
        spec = None
    known = spec is not None and (not inside or spec.submodule_search_locations is not None)
    if not known:
        raise _no_module(name)

    def source() -> tuple[CodeType, dict[str, Any]]:
        found = _from_spec(_module_spec(name))
        sys.argv[0] = found[1]["__file__"]
        return found

    return Program(["-m", *arguments], source)


def _no_module(name: str) -> ProgramError:
    hint = f" Leave out -m to run the file {name!r}." if os.path.isfile(name) else ""
    return ProgramError(f"no module named {name!r} can be run.{hint} {_HELP}.")


def _module_spec(name: str) -> ModuleSpec:
    """Imports the packages around the module; an error of theirs is an error of the program."""
    try:
        spec = importlib.util.find_spec(name)
    except ImportError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise _no_module(name) from None
    if spec is not None and spec.submodule_search_locations is not None and not name.endswith(".__main__"):
        return _module_spec(f"{name}.__main__")
    if spec is None or spec.loader is None:
        raise _no_module(name)
    return spec


def _from_spec(spec: ModuleSpec) -> tuple[CodeType, dict[str, Any]]:
    code = spec.loader.get_code(spec.name)  # type: ignore[union-attr]
    if code is None:
        raise _no_module(spec.name)
    return code, {
        "__file__": spec.origin,
        "__cached__": spec.cached,
        "__loader__": spec.loader,
        "__package__": spec.parent,
        "__spec__": spec,
    }


def _set_first_path(folder: str, *, always: bool = False) -> None:
    """Puts the program's folder where that of the command stands. With Python's -P neither of them is there."""
    if not sys.flags.safe_path:
        sys.path[0] = folder
    elif always:
        sys.path.insert(0, folder)


@contextmanager
def _own_frames_hidden() -> Iterator[None]:
    """Lets whoever reports an error, the program's own hook too, see it from the program's first frame on."""
    try:
        yield
    except (SystemExit, ProgramError):
        raise
    except BaseException as error:
        _report_from(error, _without_own_frames(error.__traceback__))
        raise


def _without_own_frames(traceback: TracebackType | None) -> TracebackType | None:
    own = (__file__, contextlib.__file__, "<frozen importlib")
    while traceback is not None and traceback.tb_frame.f_code.co_filename.startswith(own):
        traceback = traceback.tb_next
    return traceback


def _report_from(error: BaseException, traceback: TracebackType | None) -> None:
    """The frames that the error still has to pass would be added again, so they are taken away at the last moment."""
    report = sys.excepthook

    def hook(kind: type[BaseException], value: BaseException, _: TracebackType | None) -> None:
        sys.excepthook = report
        sys.last_traceback = traceback
        report(kind, value.with_traceback(traceback), traceback)

    sys.excepthook = hook
