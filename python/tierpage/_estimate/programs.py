"""The programs that an estimate records: forwards, tokens one after the other, training steps. On fake tensors."""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import inspect
import logging
import warnings
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from tierpage._estimate.codes import code_ratio
from tierpage._estimate.errors import EstimateError
from tierpage._estimate.recording import LAUNCH_MICROSECONDS, ComputeRates, Recorder, cuda_kernels
from tierpage._estimate.subjects import Subject

__all__ = ["OPTIMIZERS", "FakeMode", "Recording", "Task", "record", "silence"]

HEADING = "tierpage-program 1"
_CACHE_NAMES = ("cache", "past_key_values")  # in transformers: of late, and before
OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-4, fused=True),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-4, fused=True),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=1e-4, fused=True),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=1e-4, momentum=0.9, fused=True),
}


@dataclass(frozen=True)
class Task:
    """What the program does in a step.

    ``mode``: "infer" is a forward over (batch, tokens), "decode" one token for each sequence after ``tokens`` of them,
    "train" a forward, a backward and the optimizer. ``dtype``: the default dtype while the model is made; None: the
    model's own. ``autocast``: to bfloat16; None: where it trains float32 parameters. ``inputs``: a callable of (batch,
    tokens) that returns the model's arguments: a tensor, a tuple, or a dict of keyword arguments.
    """

    mode: str
    batch: int
    tokens: int
    optimizer: str = "adamw"
    hooks: bool = False
    recompute: bool = False
    dtype: torch.dtype | None = None
    autocast: bool | None = None
    inputs: Callable[[int, int], Any] | None = None


@dataclass(frozen=True)
class Recording:
    """A recorded program (csrc/estimate/program.h), and what is known of its model.

    Bytes count storages of 1 MiB and more, which are those that are paged, but for ``parameter_bytes``.
    """

    text: str
    parameters: int
    trained_parameters: int
    parameter_bytes: int
    held_bytes: int  # alive between two steps: parameters, optimizer states, caches
    alive_bytes: int  # at most, within the step that repeats
    compute_seconds: float  # its kernels alone
    operators: int
    autocast: bool
    code_ratio: float  # bytes of the parameters' codes by their own, which is taken for all that is paged
    uncounted: tuple[str, ...] = ()  # operators of whose time the memory traffic alone is counted
    loop_steps: int = 1  # in the part of the text that repeats
    numbers_read: int = 0  # from tensors without content, which a script then took for real
    trains: bool = False


def record(subject: Subject, task: Task, rates: ComputeRates) -> Recording:
    """Runs two steps on fake tensors, of which the last may be repeated. Raises EstimateError."""
    if subject.make is None:
        return _record_checkpoint(subject, task, rates)
    recorder = Recorder(rates)
    collecting = gc.isenabled()
    gc.disable()  # storages are to die where the program drops them, not when the collector happens to run
    try:
        with FakeMode(), cuda_kernels(), silence(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of libraries, about devices that fake tensors are not on
            session = _Session(subject, task, recorder)
            with recorder:
                session.run()
            recorder.finish()
            counts = session.counts()
    except RuntimeError as error:
        raise EstimateError(
            f"{subject.name!r} cannot be recorded: {error}\nIts steps must allocate and free the same memory each time, "
            "and read no tensor's content into Python."
        ) from error
    finally:
        if collecting:
            gc.enable()
    operators, microseconds, alive = recorder.steps[-1]
    return Recording(
        "\n".join([HEADING, *recorder.lines]) + "\n", *counts, recorder.live_bytes, alive, microseconds / 1e6,
        operators, session.autocast, session.code_ratio(), tuple(sorted(recorder.uncounted)), trains=task.mode == "train",
    )  # fmt: skip


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """torch logs a traceback where an operator refuses fake tensors; the estimate's own message says it in a line."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


class FakeMode(FakeTensorMode):  # type: ignore[no-untyped-call]
    """A copy of a module (``nn.TransformerEncoder`` makes some) copies what its tensors hold: they stay in one mode."""

    def __deepcopy__(self, memo: dict[int, Any]) -> FakeMode:
        return self


class _Session:
    """A model on fake tensors, and a step of it."""

    def __init__(self, subject: Subject, task: Task, recorder: Recorder) -> None:
        self.subject, self.task, self.recorder = subject, task, recorder
        training = task.mode == "train"
        with _default_dtype(task.dtype or (None if training else subject.dtype)):
            assert subject.make is not None
            self.model = subject.make().train(training)
        tensors = [*self.model.parameters(), *self.model.buffers()]
        if any(tensor.device.type != "cpu" for tensor in tensors):
            raise EstimateError(
                f"{subject.name!r} makes tensors on {tensors[0].device}: make them on the default device, which stands "
                "for the GPU while the program is recorded."
            )
        for tensor in tensors:
            recorder.allocate(tensor)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        wide = any(parameter.dtype == torch.float32 for parameter in trained)
        self.autocast = task.autocast if task.autocast is not None else training and wide
        self.cache: Any = None
        if training and not trained:
            raise EstimateError(f"{subject.name!r} has no parameter that requires a gradient.")
        if training and task.recompute:
            _recompute(self.model)
        self.apply = _applied(trained, OPTIMIZERS[task.optimizer], task.hooks) if training else None

    def counts(self) -> tuple[int, int, int]:
        """Parameters, those that are trained, bytes of all."""
        each = list(self.model.parameters())
        return (
            sum(p.numel() for p in each),
            sum(p.numel() for p in each if p.requires_grad),
            sum(p.numel() * p.element_size() for p in each),
        )

    def code_ratio(self) -> float:
        """Of all parameters, else of all buffers: activations are not told apart."""
        tensors: list[torch.Tensor] = [*self.model.parameters()] or [*self.model.buffers()]
        return code_ratio((tensor.dtype, tensor.numel() * tensor.element_size()) for tensor in tensors)

    def run(self) -> None:
        """A step to warm up, in which optimizer states are made, then the one that may be repeated."""
        step = self._train if self.apply is not None else self._decode if self.task.mode == "decode" else self._infer
        if self.task.mode == "decode" and self.subject.caches:
            self._prefill()
        step()
        self.recorder.begin_loop()
        step()

    def _arguments(self, tokens: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        task = self.task
        if task.inputs is None:
            return (torch.zeros((task.batch, tokens), dtype=torch.int64),), {}
        try:
            given = task.inputs(task.batch, tokens)
        except (Exception, SystemExit) as error:  # whatever it raises
            raise EstimateError(f"the callable of --inputs raised {type(error).__name__}: {error}") from error
        if isinstance(given, dict):
            return (), given
        return (given if isinstance(given, tuple) else (given,)), {}

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.autocast):
                return self.model(*args, **kwargs)
        except (Exception, SystemExit) as error:  # whatever the model raises
            shapes = [tuple(value.shape) for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
            raise EstimateError(
                f"{self.subject.name!r} raised {type(error).__name__} for inputs of shape {shapes}: {error}\nA model "
                "that takes something else than int64 tokens of shape (batch, tokens) needs --inputs module:callable, and "
                "one whose kernels want another dtype --dtype."
            ) from error

    def _parameters(self) -> Container[str]:
        return inspect.signature(self.model.forward).parameters

    def _infer(self) -> None:
        args, kwargs = self._arguments(self.task.tokens)
        with torch.no_grad():
            out = self._call(args, kwargs | ({"use_cache": False} if self.subject.caches else {}))
        del out, args, kwargs  # the step ends with what it began with
        self.recorder.synchronize()

    def _prefill(self) -> None:
        args, kwargs = self._arguments(self.task.tokens)
        with torch.no_grad():
            # As generate() does it: logits of the last token alone.
            last = {"logits_to_keep": 1} if "logits_to_keep" in self._parameters() else {}
            out = self._call(args, kwargs | {"use_cache": True} | last)
        self.cache = next(filter(None, (getattr(out, name, None) for name in _CACHE_NAMES)), None)
        if self.cache is None:
            raise EstimateError(f"{self.subject.name!r} returns no cache: give --mode infer with --tokens 1.")
        del out
        self.recorder.synchronize()

    def _decode(self) -> None:
        args, kwargs = self._arguments(1)
        if self.cache is not None:
            # The step is the same each time, so that it may be repeated: the cache grows in it and is as before it.
            name = next((each for each in _CACHE_NAMES if each in self._parameters()), _CACHE_NAMES[-1])
            kwargs |= {name: _same_content(self.cache), "use_cache": True}
        with torch.no_grad():
            out = self._call(args, kwargs)
        del out, args, kwargs
        self.recorder.synchronize()

    def _train(self) -> None:
        task = self.task
        args, kwargs = self._arguments(task.tokens + (task.inputs is None))
        tokens = args[0] if task.inputs is None else None
        if tokens is not None:
            args = (tokens[:, :-1],)
        out = self._call(args, kwargs | ({"use_cache": False} if self.subject.caches else {}))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.autocast):
            loss = _loss(out, None if tokens is None else tokens[:, 1:])
        del out
        loss.backward()  # type: ignore[no-untyped-call]
        del loss, args, kwargs, tokens
        assert self.apply is not None
        self.apply()
        self.recorder.synchronize()


def _loss(out: Any, following: torch.Tensor | None) -> torch.Tensor:
    """The loss that the model returns, cross entropy of each next token for logits, else the mean."""
    given = getattr(out, "loss", None)
    if given is None and isinstance(out, dict):
        given = out.get("loss")
    if isinstance(given, torch.Tensor):
        return given
    logits = getattr(out, "logits", out)
    if isinstance(logits, (tuple, list)):
        logits = logits[0]
    if not isinstance(logits, torch.Tensor) or not logits.is_floating_point():
        raise EstimateError(
            f"the model returns a {type(out).__name__}, from which no loss can be made: return a tensor or a loss."
        )
    if following is not None and logits.dim() == 3 and logits.shape[:2] == following.shape:
        return functional.cross_entropy(logits.flatten(0, 1), following.flatten())
    return logits.float().mean() if logits.dim() else logits


def _applied(
    trained: list[nn.Parameter], make: Callable[[list[nn.Parameter]], torch.optim.Optimizer], hooks: bool
) -> Callable[[], None]:
    """Applies the optimizer after the backward pass, or nothing where each parameter steps as its gradient is ready."""
    if not hooks:
        optimizer = make(trained)

        def apply() -> None:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return apply
    optimizers = {parameter: make([parameter]) for parameter in trained}

    def step_one(parameter: torch.Tensor) -> None:
        optimizers[parameter].step()  # type: ignore[index]
        optimizers[parameter].zero_grad(set_to_none=True)  # type: ignore[index]

    for parameter in trained:
        parameter.register_post_accumulate_grad_hook(step_one)  # type: ignore[no-untyped-call]
    return lambda: None


def _recompute(model: nn.Module) -> None:
    """Checkpoints the entries of every outermost ModuleList. Raises EstimateError where there is none."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) > 1]
    inner = {id(module) for found in lists for entry in found for module in entry.modules()}
    outermost = [found for found in lists if id(found) not in inner]
    if not outermost:
        raise EstimateError(
            "--recompute checkpoints the entries of each ModuleList, and this model has none: let the factory call "
            "torch.utils.checkpoint itself, and leave --recompute out."
        )
    for found in outermost:
        for entry in found:
            entry.forward = functools.partial(checkpoint, entry.forward, use_reentrant=False)


def _same_content(cache: Any) -> Any:
    """Another cache of transformers that holds the same tensors: what is appended to one is not in the other."""
    other = copy.copy(cache)
    for name in ("layers", "key_cache", "value_cache"):
        rows = getattr(cache, name, None)
        if isinstance(rows, list):
            setattr(other, name, [row if isinstance(row, torch.Tensor) else copy.copy(row) for row in rows])
    return other


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype | None) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype or before)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _record_checkpoint(subject: Subject, task: Task, rates: ComputeRates) -> Recording:
    """Each tensor read once, in the order of names: all that the header of a checkpoint tells.

    A matrix of n numbers takes 2 n flops for each token of each sequence. Raises EstimateError for training, whose
    activations no header knows.
    """
    if task.mode == "train":
        raise EstimateError(
            f"{subject.name!r} is a checkpoint: its header holds sizes and no operators, so training cannot be "
            "estimated from it. Give the model as module:factory, or the config.json of transformers."
        )
    positions = task.batch * (task.tokens if task.mode == "infer" else 1)
    weights, uses, total_us, held = [], [], 0.0, 0
    for number, tensor in enumerate(subject.tensors):
        count = tensor.bytes // tensor.dtype.itemsize
        matrix = len(tensor.shape) >= 2
        rate = rates.half_flops_per_second if tensor.dtype.itemsize <= 2 else rates.single_flops_per_second
        seconds = max(2 * count * positions / rate if matrix else 0.0, tensor.bytes / rates.memory_bytes_per_second)
        microseconds = seconds * 1e6 + LAUNCH_MICROSECONDS
        total_us += microseconds
        if tensor.bytes >= 1 << 20:
            held += tensor.bytes
            weights.append(f"A {number} {tensor.bytes}")
            uses.append(f"O read {microseconds:.1f} {number}r")
    count = sum(tensor.bytes // tensor.dtype.itemsize for tensor in subject.tensors)
    lines = [HEADING, *weights, "S", *uses, "S", "L", *uses, "S"]
    return Recording(
        "\n".join(lines) + "\n", count, 0, sum(tensor.bytes for tensor in subject.tensors), held, held,
        total_us / 1e6, len(subject.tensors), False,
        code_ratio((tensor.dtype, tensor.bytes) for tensor in subject.tensors),
    )  # fmt: skip
