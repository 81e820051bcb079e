"""Records the programs of the benchmarks on fake tensors, without a GPU (tierpage/_estimate/recording.py).

    python bench/record_program.py train-3b -o train-3b.txt

Durations are a model of one H200. The text that comes out is described in csrc/estimate/program.h.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import itertools
import os
import random
import sys
from collections.abc import Callable

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from llama_shape import SHAPES, Decoder, Shape, build
from train import make_steps

from tierpage._estimate.recording import LAUNCH_MICROSECONDS, ComputeRates, Recorder, cuda_kernels

MEMORY_BYTES_PER_SECOND = 3.6e12


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
    rates = ComputeRates(setup.matmul_rate, setup.matmul_rate, MEMORY_BYTES_PER_SECOND)
    recorder = Recorder(rates, smallest_bytes)
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
