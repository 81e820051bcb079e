"""Records a program that nobody edits: it is run on fake tensors, as ``__main__``, until its steps repeat.

Everything that it makes counts as the device's, whatever device it names. It is left in the middle of its loop once two
steps in a row leave the same memory behind them. A step ends with ``tierpage.step()`` where the program calls that, else
with ``optimizer.step()``, else with a forward of an outermost module without gradients.

What has no content cannot decide: a number that the program reads from a tensor is 1, a truth False.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.overrides import TorchFunctionMode

import tierpage
from tierpage import living
from tierpage._estimate.codes import code_ratio
from tierpage._estimate.errors import EstimateError
from tierpage._estimate.programs import HEADING, FakeMode, Recording, silence
from tierpage._estimate.recording import ComputeRates, Recorder, cuda_kernels
from tierpage._run.program import Program, ProgramError, find

__all__ = ["record_script"]

_STEPS_MOST = 24  # recorded: caching libraries settle within a few
# Numbers into Python; the last is a truth.
_READS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default, torch.ops.aten.is_nonzero.default)
_PERIOD_MOST = 4  # steps that differ in which of two places a result takes, and then repeat


class _Enough(BaseException):
    """Leaves the program. Not an Exception, so that no handler of the program takes it."""


@dataclass(frozen=True)
class _Border:
    """Where a step ended: the lines until then, and what was alive: bytes by id."""

    line: int
    alive: dict[int, int]


class _Watch(Recorder):  # type: ignore[no-untyped-call]
    """Records, and knows where steps end."""

    def __init__(self, rates: Callable[[bool], ComputeRates]) -> None:
        super().__init__(rates(False))
        self.training_rates = rates(True)
        self.mode = FakeMode(allow_non_fake_inputs=True)
        self.borders: list[_Border] = []
        self.parameters: list[torch.Tensor] = []  # of all modules, at the last border
        self.read = 0  # numbers that the program wanted from tensors
        self.marked = self.trained = False  # by tierpage.step(), by an optimizer
        self.left = False  # in the middle of its loop
        self._depth = 0
        self._ends = False  # the step, with the next operator: what is freed between the two does not outlive it

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _READS:
            self.read += 1
            kind = args[0].dtype
            return False if kind == torch.bool or func is _READS[-1] else 1.0 if kind.is_floating_point else 1
        if func.namespace != "profiler":  # with which torch marks where an optimizer's step ends
            self.flush()
        return super().__torch_dispatch__(func, types, args, kwargs)

    def step(self) -> None:
        """In place of ``tierpage.step``."""
        if not self.marked:
            self.marked = True
            self._ends = False
            self.borders.clear()
        self._end_step()

    def stepped(self, *_: Any) -> None:
        """An optimizer's hook. Of several optimizers each ends a step: they all run in a loop that repeats."""
        if not self.trained:
            self.trained = True
            self.borders.clear()
            self.rates = self.training_rates
        self._ends = not self.marked

    def flush(self) -> None:
        """Ends the step that is over."""
        if self._ends:
            self._ends = False
            self._end_step()

    def enter(self, *_: Any) -> None:
        """A module's hook."""
        self._depth += 1

    def leave(self, *_: Any) -> None:
        """A module's hook, also where its forward raises."""
        self._depth -= 1
        if self._depth or self.marked or self.trained or torch.is_grad_enabled():
            return
        if not any(map(self._trains, living.modules_and_optimizers())):
            self._ends = True

    def _end_step(self) -> None:
        if not self._open:  # the program goes on although it was left
            raise _Enough
        self.synchronize()
        self.borders.append(_Border(len(self.lines), self.alive()))
        if self.loop() is not None or len(self.borders) > _STEPS_MOST:
            self._open = False
            self.left = True
            self.parameters = self._parameters()
            raise _Enough

    def _trains(self, thing: object) -> bool:
        """Whether it is an optimizer of this program."""
        groups = getattr(thing, "param_groups", ()) if isinstance(thing, torch.optim.Optimizer) else ()
        return any(getattr(p, "fake_mode", None) is self.mode for group in groups for p in group["params"])

    def _parameters(self) -> list[torch.Tensor]:
        """Those of all modules, but for what other programs have left in this process."""
        tables = [vars(module).get("_parameters") for module in living.modules()]
        each = [p for table in tables if isinstance(table, dict) for p in table.values() if p is not None]
        return list({id(p): p for p in each if getattr(p, "fake_mode", None) is self.mode}.values())

    def loop(self) -> tuple[int, int] | None:
        """The first line of the part that may be repeated, and how many steps it has. Its end is the last border's.

        Two periods in a row: the first step makes what the others find, and may leave the same behind.
        """
        alive = [border.alive for border in self.borders]
        for period in range(1, _PERIOD_MOST + 1):
            if len(alive) > 2 * period and alive[-1] == alive[-1 - period] == alive[-1 - 2 * period]:
                return self.borders[-1 - period].line, period
        return None


class _OneDevice(TorchFunctionMode):
    """Every device that the program names is the one that is recorded."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.cuda:
            return args[0]
        kwargs = {name: _here(value) for name, value in (kwargs or {}).items() if name != "pin_memory"}
        return func(*map(_here, args), **kwargs)


def _apply(module: nn.Module, change: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
    """In place of ``Module._apply``, which exchanges fake tensors with what they become, and so fails where a device is
    all that would have changed."""
    for child in module.children() if recurse else ():
        child._apply(change)  # type: ignore[no-untyped-call]
    for tensor in [*module._parameters.values(), *module._buffers.values()]:
        for each in (tensor, tensor.grad if tensor is not None and tensor.is_leaf else None):
            if each is None:
                continue
            with torch.no_grad():
                changed = change(each)
            if changed is not each:
                each.data = changed
    return module


def _here(value: Any) -> Any:
    if isinstance(value, torch.device):
        return torch.device("cpu") if value.type == "cuda" else value
    return "cpu" if isinstance(value, str) and value.partition(":")[0] == "cuda" else value


def record_script(words: tuple[str, ...], rates: Callable[[bool], ComputeRates]) -> Recording:
    """Runs the program that ``words`` name (a script or ``-m`` and a module, then its arguments). ``rates`` are those of
    a program that trains, or that does not.

    Raises EstimateError: there is none, it fails on fake tensors, or its steps do not repeat.
    """
    watch = _Watch(rates)
    name = " ".join(words[:2] if words[0] == "-m" else words[:1])
    collecting = gc.isenabled()
    with _surroundings():
        try:
            program = find(words)
        except ProgramError as error:
            raise EstimateError(str(error)) from None
        gc.disable()
        try:
            _run(program, watch)
        except (_Enough, KeyboardInterrupt) as end:
            if not isinstance(end, _Enough):
                raise
        except BaseException as error:
            if not watch.left:  # what it does on its way out is no step
                raise _ended(name, watch, error) from error
        finally:
            if collecting:
                gc.enable()
        loop = watch.loop()
        if loop is None:
            raise _ended(name, watch, None)
        return _recording(watch, *loop)


def _run(program: Program, watch: _Watch) -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # of libraries, about devices that fake tensors are not on
        for replaced in _replaced(watch):
            stack.enter_context(replaced)
        stack.enter_context(watch.mode)
        stack.enter_context(cuda_kernels())
        stack.enter_context(silence())
        hooks = (
            register_optimizer_step_post_hook(watch.stepped),
            nn.modules.module.register_module_forward_pre_hook(watch.enter),
            nn.modules.module.register_module_forward_hook(watch.leave, always_call=True),
        )
        for hook in hooks:
            stack.callback(hook.remove)
        stack.enter_context(_OneDevice())
        with watch:
            program.load()
            program.run()
            watch.flush()


def _replaced(watch: _Watch) -> Iterator[Any]:
    """What a program asks of the device, of tierpage, and of loaders' processes, which have no fake tensors."""
    autocast, loader = torch.autocast.__init__, torch.utils.data.DataLoader.__init__

    def on_host(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        autocast(self, _here(device_type), *args, **kwargs)

    def alone(self: Any, *args: Any, **kwargs: Any) -> None:
        away = ("num_workers", "prefetch_factor", "persistent_workers", "pin_memory", "multiprocessing_context")
        loader(self, *args, **{name: value for name, value in kwargs.items() if name not in away})

    yield mock.patch.object(nn.Module, "_apply", _apply)
    yield mock.patch.object(torch.autocast, "__init__", on_host)
    yield mock.patch.object(torch.utils.data.DataLoader, "__init__", alone)
    for name in ("synchronize", "empty_cache", "reset_peak_memory_stats", "set_device"):
        yield mock.patch.object(torch.cuda, name, return_value=None)
    for name in ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved"):
        yield mock.patch.object(torch.cuda, name, return_value=0)
    nothing: dict[str, Callable[..., Any]] = {
        **dict.fromkeys(("enable", "paged", "pin"), lambda *args, **kwargs: contextlib.nullcontext()),
        **dict.fromkeys(("disable", "set_budget"), lambda *args, **kwargs: None),
        **dict.fromkeys(("prefetch", "evict", "pause", "resume"), lambda *args, **kwargs: 0),
        "is_enabled": lambda: False,
        "memory_summary": lambda: "",
        "memory_stats": dict,
        "step": watch.step,
    }
    for name, replacement in nothing.items():
        yield mock.patch.object(tierpage, name, replacement)
    # Tensors without content are not to take the place of a file that has some.
    writers: list[tuple[Any, str]] = [(torch, "save"), (torch.serialization, "save"), (tierpage, "save")]
    if importlib.util.find_spec("safetensors") is not None:
        module = importlib.import_module("safetensors.torch")
        writers += [(module, "save_file"), (module, "save_model")]
    for place, name in writers:
        yield mock.patch.object(place, name, return_value=None)


@contextlib.contextmanager
def _surroundings() -> Iterator[None]:
    """What a program changes of the interpreter is as before. What it prints goes to stderr."""
    main, hook = sys.modules.get("__main__"), sys.excepthook
    arguments, path, out = sys.argv, list(sys.path), sys.stdout
    sys.path.insert(0, os.getcwd())  # which the program's own folder takes the place of
    sys.stdout = sys.stderr
    default = torch.get_default_dtype()
    try:
        yield
    finally:
        torch.set_default_dtype(default)
        sys.stdout, sys.path[:], sys.argv, sys.excepthook = out, path, arguments, hook
        if main is not None:
            sys.modules["__main__"] = main


def _ended(name: str, watch: _Watch, error: BaseException | None) -> EstimateError:
    count = len(watch.borders)
    if error is not None and not (isinstance(error, SystemExit) and error.code in (None, 0)):
        told = f"{type(error).__name__}: {error}"
        return EstimateError(
            f"{name!r} ended after {count} steps with {told}\nIt runs on fake tensors, which have shapes and no content, "
            "and without the device: what cannot be done there has to be left out, or give the model as module:factory."
        )
    if not count:
        return EstimateError(
            f"{name!r} made no step: neither tierpage.step(), nor optimizer.step(), nor a forward without gradients."
        )
    return EstimateError(
        f"{name!r} made {count} steps, and no three of them in a row leave the same memory behind: let it make more, or "
        "mark where a step ends with tierpage.step(). What keeps more with each step has no step to estimate."
    )


def _recording(watch: _Watch, begin: int, steps: int) -> Recording:
    lines = [HEADING, *watch.lines[:begin], "L", *watch.lines[begin : watch.borders[-1].line]]
    made = watch.parameters
    trained = [parameter for parameter in made if parameter.requires_grad]
    operators, microseconds, _ = (sum(column) for column in zip(*watch.steps[-steps:], strict=True))
    return Recording(
        "\n".join(lines) + "\n",
        sum(p.numel() for p in made),
        sum(p.numel() for p in trained),
        sum(p.numel() * p.element_size() for p in made),
        _least_alive(watch.borders[-1].alive, lines[begin + 1 :]),
        max(peak for _, _, peak in watch.steps[-steps:]),
        microseconds / 1e6 / steps,
        operators // steps,
        False,
        code_ratio((p.dtype, p.numel() * p.element_size()) for p in made),
        tuple(sorted(watch.uncounted)),
        steps,
        watch.read,
        watch.trained,
    )


def _least_alive(begin: dict[int, int], lines: list[str]) -> int:
    """Bytes: what is held between two steps, wherever in its loop the program has the border."""
    alive = {str(number): size for number, size in begin.items()}
    now = least = sum(alive.values())
    for kind, *words in map(str.split, lines):
        fresh = [words] if kind == "A" else [word[1:].split(":") for word in words[2:] if word[0] == "+"]
        for number, size in fresh:
            alive[number] = int(size)
            now += int(size)
        if kind == "F":
            now -= alive.pop(words[0])
        least = min(least, now)
    return least
