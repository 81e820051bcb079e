"""Records which storages the operators of a PyTorch program read, write, allocate and free, without a GPU.

    python bench/record_program.py train-3b -o train-3b.txt

The program runs on fake tensors: no memory behind them, no kernel runs. Durations are a model of one H200: the longer
of arithmetic and memory traffic, plus a launch. The text that comes out is described in csrc/estimate/program.h.
Fake tensors are on the host device, because a CPU build of torch has no autograd for another. Where CUDA takes other
kernels (cuda_kernels), they are put in place; the host's flash attention stands for the device's.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import heapq
import itertools
import os
import random
import sys
import weakref
from collections.abc import Callable, Iterator
from unittest import mock

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from llama_shape import SHAPES, Decoder, Shape, build
from train import make_steps

MEMORY_BYTES_PER_SECOND = 3.6e12
LAUNCH_MICROSECONDS = 4.0
WRITTEN_ALONE_MICROSECONDS = 20.0  # an operator without a recorded storage gets a line of its own from here on
# These read a few rows of an input, or its shape alone: no more of it than they put out.
SPARSE_READERS = ("aten::embedding", "aten::nll_loss_forward", "aten::nll_loss_backward")
ALLOCATE_ONLY = ("aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty")


class FusedRmsNorm(torch.autograd.Function):
    """CUDA's root mean square norm: one operator each way; on the host it would be a chain of small ones."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """x: (..., dim), weight: (dim,)."""
        with torch._C._AutoDispatchBelowAutograd():
            out, scale = torch.ops.aten._fused_rms_norm(x, weight.shape, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return out

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        """Gradients of x and weight."""
        x, weight, scale = ctx.saved_tensors
        with torch._C._AutoDispatchBelowAutograd():
            grads = torch.ops.aten._fused_rms_norm_backward(grad, x, weight.shape, scale, weight, [True, True])
        return *grads, None


@contextlib.contextmanager
def cuda_kernels() -> Iterator[None]:
    """Replaces the calls for which CUDA runs other operators than the host does."""
    plain = functional.cross_entropy
    with (
        mock.patch.object(functional, "rms_norm", lambda x, _, weight, eps: FusedRmsNorm.apply(x, weight, eps)),
        # CUDA's autocast runs log_softmax in float32, the host's does not.
        mock.patch.object(functional, "cross_entropy", lambda logits, target: plain(logits.float(), target)),
    ):
        yield


def written(schema: torch.FunctionSchema, argument: torch.Argument, unscales: bool) -> bool:
    """Whether the operator writes the argument, as the interceptor announces it (csrc/torch/operator_info.cpp).

    A fused optimizer stores a gradient only where it unscales it, whatever its schema says.
    """
    if argument.alias_info is None or not argument.alias_info.is_write:
        return False
    fused = schema.name.startswith(("aten::_fused_ada", "aten::_fused_sgd"))
    return not fused or argument.name != "grads" or unscales


class Recorder(TorchDispatchMode):
    """Writes a line for each operator below autograd, and one wherever a storage that it knows dies.

    Holds no tensor and no storage, so that they die as they do without it. ``lines`` are the records so far.
    """

    def __init__(self, flops_per_second: float, smallest_bytes: int = 2**20) -> None:
        super().__init__()
        self.flops_per_second, self.smallest_bytes = flops_per_second, smallest_bytes
        self.lines: list[str] = []
        self.steps: list[tuple[int, float, int]] = []  # of each: operators, microseconds, bytes alive at most
        self.loop_live: dict[int, int] | None = None
        self.live: dict[int, int] = {}  # id -> serial number of the allocation
        self.late_frees = 0  # storages that only the garbage collector freed
        self._ids: dict[int, int] = {}  # address of the live storage -> id
        self._free_ids: list[int] = []
        self._dead: list[int] = []  # not written yet: in order of their ids, as autocast drops its copies in any order
        self._live_bytes = self._serial = 0
        self._skipped_us = 0.0
        self._operators, self._step_us, self._peak_bytes = 0, 0.0, 0
        self._open = True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if self._open:
            self._record(func, args, kwargs, out)
        return out

    def allocate(self, tensor: torch.Tensor) -> None:
        """Writes down a storage that no recorded operator allocated; nothing for small or known ones."""
        storage = tensor.untyped_storage()
        if storage.nbytes() >= self.smallest_bytes and storage._cdata not in self._ids:
            self._write(f"A {self._begin_life(storage)} {storage.nbytes()}")

    def synchronize(self) -> None:
        """The program waits for the device: the end of a step."""
        if self._skipped_us:
            self._write(f"O (small) {self._skipped_us:.1f}")
            self._skipped_us = 0.0
        self._write("S")
        self.steps.append((self._operators, self._step_us, self._peak_bytes))
        self._operators, self._step_us, self._peak_bytes = 0, 0.0, self._live_bytes

    def begin_loop(self) -> None:
        """What follows is the step that may be repeated for ever."""
        self._write("L")
        self.loop_live = dict(self.live)

    def finish(self) -> None:
        """Ends the recording. RuntimeError where the loop leaves other storages alive than it found."""
        self._write_deaths()
        self._open = False
        before = len(self._ids)
        gc.collect()
        self.late_frees = before - len(self._ids)
        if self.loop_live is not None and (self.loop_live != self.live or self.lines[-1] != "S"):
            raise RuntimeError("the loop does not leave the storages alive that it found")

    def _record(self, func, args: tuple, kwargs: dict, out) -> None:
        schema = func._schema
        tensors: list[tuple[torch.Tensor, bool]] = []  # read or written
        lists: list[tuple[list, bool]] = []
        given = [*zip(schema.arguments, args, strict=False), *((a, kwargs.get(a.name)) for a in schema.arguments)]
        unscales = kwargs.get("grad_scale") is not None
        for argument, value in given:
            writes = written(schema, argument, unscales)
            if isinstance(value, torch.Tensor):
                tensors.append((value, writes))
            elif isinstance(value, (list, tuple)) and any(isinstance(v, torch.Tensor) for v in value):
                lists.append((value, writes))
        used = tensors + [(t, writes) for value, writes in lists for t in value if t is not None]
        known = {t.untyped_storage()._cdata for t, _ in used}
        outputs = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        fresh = {t.untyped_storage()._cdata: t for t in outputs if t.untyped_storage()._cdata not in known}
        if not fresh and not any(writes for _, writes in used):
            return  # a view, or a question about shapes
        us = self._microseconds(func, args, kwargs, out, used, list(fresh.values()))
        for tensor, _ in used:
            self.allocate(tensor)
        is_list_operator = schema.name.startswith(("aten::_foreach_", "aten::_fused_")) and bool(lists)
        if is_list_operator:
            count = max(len(value) for value, _ in lists)
            groups = [[(v[i], w) for v, w in lists if i < len(v)] for i in range(count)]
            words = " ; ".join(filter(None, (self._uses(group + tensors) for group in groups)))
        else:
            words = self._uses(used)
        for tensor in fresh.values():
            storage = tensor.untyped_storage()
            if storage.nbytes() >= self.smallest_bytes:
                words += f" +{self._begin_life(storage)}:{storage.nbytes()}"
        self._operators += 1
        self._step_us += us
        self._skipped_us += us
        if words or us >= WRITTEN_ALONE_MICROSECONDS:
            mark = "O*" if is_list_operator else "O"
            self._write(f"{mark} {schema.name} {self._skipped_us:.1f} {words.strip()}".rstrip())
            self._skipped_us = 0.0

    def _write(self, line: str) -> None:
        self._write_deaths()
        self.lines.append(line)

    def _write_deaths(self) -> None:
        self.lines += [f"F {number}" for number in sorted(self._dead)]
        self._dead.clear()

    def _uses(self, pairs: list[tuple[torch.Tensor, bool]]) -> str:
        marks: dict[int, str] = {}
        for tensor, written in pairs:
            number = self._ids.get(tensor.untyped_storage()._cdata)
            if number is not None:
                marks[number] = "w" if written else marks.get(number, "r")
        return " ".join(f"{number}{mark}" for number, mark in marks.items())

    def _microseconds(self, func, args, kwargs, out, used, fresh) -> float:
        name = func._schema.name
        if name in ALLOCATE_ONLY:
            return 0.0
        put_out = sum(map(touched_bytes, fresh))
        read = sum(touched_bytes(t) * (2 if written else 1) for t, written in used)
        if name in SPARSE_READERS:
            read = min(read, put_out)
        arithmetic = flops(func, args, kwargs, out) / self.flops_per_second
        return max(arithmetic, (put_out + read) / MEMORY_BYTES_PER_SECOND) * 1e6 + LAUNCH_MICROSECONDS

    def _begin_life(self, storage: torch.UntypedStorage) -> int:
        number = heapq.heappop(self._free_ids) if self._free_ids else len(self._ids)
        self._ids[storage._cdata] = number
        self._serial += 1
        self.live[number] = self._serial
        self._live_bytes += storage.nbytes()
        self._peak_bytes = max(self._peak_bytes, self._live_bytes)
        death = weakref.finalize(storage, self._end_life, storage._cdata, number, storage.nbytes())
        death.atexit = False
        return number

    def _end_life(self, address: int, number: int, nbytes: int) -> None:
        del self._ids[address]
        if not self._open:
            return
        self._dead.append(number)
        heapq.heappush(self._free_ids, number)
        del self.live[number]
        self._live_bytes -= nbytes


def touched_bytes(tensor: torch.Tensor) -> int:
    """Bytes of the tensor; one that is expanded counts no more than what it is expanded from."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def flops(func, args: tuple, kwargs: dict, out) -> int:
    """Arithmetic of the operator, 0 where torch has no formula.

    Causal attention counts in full: its kernels do half of that, at about half the rate of a matrix product.
    """
    name = func._schema.name
    if name == "aten::_scaled_dot_product_flash_attention_for_cpu":
        return sdpa_flop_count(*(t.shape for t in args[:3]))
    if name == "aten::_scaled_dot_product_flash_attention_for_cpu_backward":
        return sdpa_backward_flop_count(*(t.shape for t in args[:4]))
    formula = flop_registry.get(func._overloadpacket)
    return formula(*args, **kwargs, out_val=out) if formula else 0


class Experts(nn.Module):
    """Eight linears in place of one, of which a step uses those in ``chosen``, each for its part of the tokens."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(inputs, outputs, bias=False) for _ in range(8))
        self.chosen = [0, 1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (batch, tokens, inputs) -> (batch, tokens, outputs)."""
        parts = x.chunk(len(self.chosen), dim=1)
        return torch.cat([self.linears[i](part) for i, part in zip(self.chosen, parts, strict=True)], dim=1)


@dataclasses.dataclass(frozen=True)
class Setup:
    """A program: the model's shape, what it is fed, and the steps.

    ``matmul_rate``: flops a second, chosen so that the sums meet what one H200 was measured at: 91 ms for infer-13b,
    0.50 s a step for train-3b. ``mixture``: experts (of a quarter of the width) in place of each feed-forward.
    """

    run: Callable[[Session], None]
    shape: Shape = SHAPES["3b"]
    layers: int = 8
    batch: int = 2
    tokens: int = 1024
    training: bool = True
    recompute: bool = False
    hooks: bool = False
    mixture: bool = False
    matmul_rate: float = 633e12


class Session:
    """A model on fake tensors and its recorder; each method is one step as bench/infer.py or bench/train.py does it."""

    def __init__(self, setup: Setup, recorder: Recorder) -> None:
        self.setup, self.recorder = setup, recorder
        shape = dataclasses.replace(setup.shape, layers=setup.layers)
        dtype = torch.float32 if setup.training else torch.bfloat16
        self.model: Decoder = build(shape, "cpu", dtype, recompute=setup.recompute)
        for layer in self.model.layers if setup.mixture else ():
            layer.gate, layer.up = (Experts(shape.dim, shape.hidden // 4) for _ in range(2))
            layer.down = Experts(shape.hidden // 4, shape.dim)
        for parameter in self.model.parameters():
            recorder.allocate(parameter)
        self.apply = make_steps(self.model, setup.hooks) if setup.training else None
        self.random = random.Random(1)

    def feed(self, tokens: int) -> torch.Tensor:
        """Input of a step."""
        return torch.zeros((self.setup.batch, tokens), dtype=torch.int64)

    def train(self, tokens: int | None = None, micro_batches: int = 1) -> None:
        """One step of the optimizer."""
        for _ in range(micro_batches):
            fed = self.feed((tokens or self.setup.tokens) + 1)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = self.model(fed[:, :-1])
                loss = functional.cross_entropy(logits.flatten(0, 1), fed[:, 1:].flatten())
            del logits
            loss.backward()
        self.apply()
        self.recorder.synchronize()

    def infer(self, tokens: int | None = None) -> None:
        """One forward."""
        fed = self.feed(tokens or self.setup.tokens)
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.setup.training):
            logits = self.model(fed)
        del logits
        self.recorder.synchronize()


def steady(session: Session) -> None:
    """Two steps to warm up, then the one that may be repeated."""
    step = session.train if session.setup.training else session.infer
    step()
    step()
    session.recorder.begin_loop()
    step()


def mix(session: Session) -> None:
    """Training, evaluation and generation in turn."""
    for _ in range(3):
        for _ in range(6):
            session.train()
        for _ in range(2):
            session.infer()
        for _ in range(16):
            session.infer(1)


def lengths(session: Session) -> None:
    """Training with another length of sequence each step."""
    for index in range(16):
        session.train((1024, 768, 1024, 512)[index % 4])


def experts(session: Session) -> None:
    """Training where each step uses two experts of eight in each layer."""
    for _ in range(16):
        for layer in session.model.layers:
            layer.gate.chosen = layer.up.chosen = layer.down.chosen = session.random.sample(range(8), 2)
        session.train()


def early_exit(session: Session) -> None:
    """Forwards that leave after some of the layers."""
    layers = session.model.layers
    for _ in range(24):
        session.model.layers = layers[: session.random.randint(1, len(layers))]
        session.infer()
    session.model.layers = layers


def repeat(steps: int, micro_batches: int = 1) -> Callable[[Session], None]:
    """Training, written out."""

    def run(session: Session) -> None:
        for _ in range(steps):
            session.train(micro_batches=micro_batches)

    return run


PROGRAMS = {
    "infer-13b": Setup(steady, SHAPES["13b"], 40, 1, 2048, training=False, matmul_rate=727e12),
    "train-3b": Setup(steady, layers=26, batch=4, tokens=2048, recompute=True),
    "train-3b-hooks": Setup(steady, layers=26, batch=4, tokens=2048, recompute=True, hooks=True),
    "train-3b-32": Setup(steady, layers=26, batch=32, tokens=2048, recompute=True),
    "train-3b-plain": Setup(steady, layers=26, batch=4, tokens=2048),
    "mix": Setup(mix),
    "lengths": Setup(lengths),
    "moe": Setup(experts, mixture=True),
    "accumulate": Setup(repeat(4, micro_batches=4)),
    "early-exit": Setup(early_exit, training=False),
    "train": Setup(repeat(8)),
}


def record(setup: Setup, smallest_bytes: int = 2**20) -> Recorder:
    """Runs the program and returns what was recorded; storages below ``smallest_bytes`` are left out."""
    recorder = Recorder(setup.matmul_rate, smallest_bytes)
    collecting = gc.isenabled()
    gc.disable()  # storages are to die where the program drops them, not when the collector happens to run
    try:
        with FakeTensorMode(), cuda_kernels():
            session = Session(setup, recorder)
            with recorder:
                setup.run(session)
            recorder.finish()
    finally:
        if collecting:
            gc.enable()
    return recorder


def write(recorder: Recorder, name: str, setup: Setup, file) -> None:
    """Writes the records with a heading."""
    head = [
        "tierpage-program 1",
        f"# {name}: {setup.shape.dim} wide, {setup.layers} layers, batch {setup.batch}, {setup.tokens} tokens",
        f"# time: flops / {setup.matmul_rate:g} or bytes / {MEMORY_BYTES_PER_SECOND:g}, + {LAUNCH_MICROSECONDS:g} us",
    ]
    file.write("\n".join(head + recorder.lines) + "\n")


def main() -> int:
    """Records the program named on the command line; a summary goes to stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", choices=PROGRAMS)
    parser.add_argument("-o", dest="output", default="-", help="file to write (default: stdout)")
    parser.add_argument("--layers", type=int, default=0, help="other number of layers")
    args = parser.parse_args()
    setup = PROGRAMS[args.program]
    if args.layers:
        setup = dataclasses.replace(setup, layers=args.layers)
    recorder = record(setup)
    if args.output == "-":
        write(recorder, args.program, setup, sys.stdout)
    else:
        with open(args.output, "w") as file:
            write(recorder, args.program, setup, file)
    report = [f"{len(recorder.lines)} records; {recorder.late_frees} storages freed only by the collector"]
    for (operators, us, peak), same in itertools.groupby(recorder.steps):
        figures = f"{operators} operators, {us / 1e6:.4f} s, {peak / 1e9:.2f} GB alive at most"
        report.append(f"{len(list(same))} steps of {figures}")
    print("\n".join(report), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
