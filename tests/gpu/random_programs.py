"""Random programs on a GPU, plain against paged, by bits: raw launches, operators and copies on several streams, graphs,
frees, record_stream, threads, evictions and budgets that change; a third of them need more than the budget at once.

    python tests/gpu/random_programs.py [--first SEED] [--count N] [--seconds S] [--paranoid]

Prints one line for each hundred programs, and the seed of one that differs or fails; exit code 1 then. Each program is a
function of its seed alone. Accesses are ordered by events as a careful program orders them, and by nothing else.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import os
import random
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

# A workspace for each thread and stream, which never leaves: 32 MiB each would be more than these budgets.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":16:8")

import torch
from guard import MIB, launch

import tierpage

PER_ROUND = 50  # programs between an enable and its disable
ONE_CAPTURE = threading.Lock()  # torch synchronises the device before a capture, which would end another one


@dataclass
class Block:
    """A tensor, the address that was taken when it was made, and the events that order its accesses."""

    tensor: torch.Tensor
    made_on: torch.cuda.Stream
    address: int = 0
    written: torch.cuda.Event | None = None
    read: list[torch.cuda.Event] = field(default_factory=list)
    in_graphs: bool = False  # a graph keeps its address: it lives as long as the program

    def __post_init__(self) -> None:
        self.address = self.tensor.data_ptr()


class Actor:
    """One thread of a program, with streams and blocks of its own."""

    def __init__(self, seed: int, largest_mib: int) -> None:
        self.chance = random.Random(seed)
        self.largest_mib = largest_mib
        self.streams = [torch.cuda.Stream() for _ in range(3)]
        self.graphs: list[tuple[torch.cuda.CUDAGraph, list[Block], list[Block]]] = []
        self.blocks = [self.make() for _ in range(self.chance.randint(6, 12))]

    def make(self) -> Block:
        stream = self.chance.choice(self.streams)
        count = self.chance.randint(MIB // 8, self.largest_mib * MIB // 4)
        with torch.cuda.stream(stream):
            tensor = torch.arange(count, device="cuda", dtype=torch.float32).mul_(self.chance.random() / count)
        block = Block(tensor, stream)
        self.done(stream, [], [block])
        return block

    def before(self, stream: torch.cuda.Stream, reads: list[Block], writes: list[Block]) -> None:
        for block in reads + writes:
            if block.written is not None:
                stream.wait_event(block.written)
            if stream != block.made_on:
                block.tensor.record_stream(stream)
        for block in writes:
            for event in block.read:
                stream.wait_event(event)

    def done(self, stream: torch.cuda.Stream, reads: list[Block], writes: list[Block]) -> None:
        event = torch.cuda.Event()
        event.record(stream)
        for block in reads:
            block.read.append(event)
        for block in writes:
            block.written, block.read = event, []

    def pair(self) -> tuple[Block, Block, int]:
        source, target = self.chance.sample(self.blocks, 2)
        return source, target, min(source.tensor.numel(), target.tensor.numel())

    def on_a_stream(self, reads: list[Block], writes: list[Block], work: Callable[[], object]) -> None:
        stream = self.chance.choice(self.streams)
        self.before(stream, reads, writes)
        with torch.cuda.stream(stream):
            if self.chance.random() < 0.1:
                torch.cuda._sleep(2_000_000)
            work()
        self.done(stream, reads, writes)

    def raw_launch(self) -> None:
        source, target, count = self.pair()
        self.on_a_stream([source], [target], lambda: launch(source.address, target.address, count))

    def operator(self) -> None:
        source, target, count = self.pair()
        self.on_a_stream(
            [source], [target], lambda: target.tensor[:count].mul_(0.25).add_(source.tensor[:count].sin(), alpha=0.5)
        )

    def product(self) -> None:
        source, target, count = self.pair()
        side = int(count**0.5) // 8 * 8

        def work() -> None:
            one = source.tensor[: side * side].view(side, side)
            other = target.tensor[: side * side].view(side, side)
            other.copy_(torch.mm(one, other).div_(side))

        self.on_a_stream([source], [target], work)

    def copy(self) -> None:
        import cupy

        source, target, count = self.pair()
        self.on_a_stream(
            [source],
            [target],
            lambda: cupy.cuda.runtime.memcpyAsync(
                target.address, source.address, count * 4, 3, torch.cuda.current_stream().cuda_stream
            ),
        )

    def set(self) -> None:
        import cupy

        target = self.chance.choice(self.blocks)
        some = target.tensor.numel() // 3 * 4
        self.on_a_stream(
            [],
            [target],
            lambda: cupy.cuda.runtime.memsetAsync(
                target.address + some, 0, some, torch.cuda.current_stream().cuda_stream
            ),
        )

    def replace(self) -> None:
        """Frees a block while its work may be queued still, and makes another."""
        at = self.chance.randrange(len(self.blocks))
        if not self.blocks[at].in_graphs:
            self.blocks[at] = self.make()

    def capture(self) -> None:
        if len(self.graphs) == 3:
            return
        pairs = [self.pair() for _ in range(self.chance.randint(1, 2))]
        reads, writes = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        raw = [self.chance.random() < 0.6 for _ in pairs]
        self.before(self.streams[0], reads, writes)
        self.streams[0].synchronize()
        recorded = torch.cuda.CUDAGraph()
        with ONE_CAPTURE, torch.cuda.graph(recorded, stream=self.streams[0], capture_error_mode="thread_local"):
            for (source, target, count), is_raw in zip(pairs, raw, strict=True):
                if is_raw:
                    launch(source.address, target.address, count)
                else:
                    target.tensor[:count].add_(source.tensor[:count], alpha=0.5)
        for block in reads + writes:
            block.in_graphs = True
        self.graphs.append((recorded, reads, writes))

    def replay(self) -> None:
        if self.graphs:
            recorded, reads, writes = self.chance.choice(self.graphs)
            self.on_a_stream(reads, writes, recorded.replay)

    def look(self) -> None:
        source, _, count = self.pair()
        if source.written is not None:
            source.written.synchronize()
        if float(source.tensor[count // 2]) > 0:
            self.raw_launch()

    def page(self) -> None:
        """What only the paged run does; the choices are drawn in both."""
        what, block = self.chance.random(), self.chance.choice(self.blocks)
        if not tierpage.is_enabled():
            return
        if what < 0.5:
            tierpage.evict(block.tensor)
        elif what < 0.8:
            tierpage.prefetch(block.tensor)

    def run(self, steps: int) -> None:
        works = [
            self.raw_launch,
            self.operator,
            self.product,
            self.copy,
            self.set,
            self.replace,
            self.replay,
            self.look,
        ]
        for _ in range(steps):
            self.chance.choices([*works, self.capture, self.page], [8, 6, 2, 3, 1, 3, 3, 1, 0.5, 3])[0]()

    def result(self) -> torch.Tensor:
        """One number a block, of all of its bits."""
        torch.cuda.synchronize()
        sums = []
        for block in self.blocks:
            words = block.tensor.view(torch.int32)
            sums.append((words * (torch.arange(words.numel(), device="cuda", dtype=torch.int32) | 1)).sum())
        return torch.stack(sums).cpu()


def shape_of(seed: int) -> tuple[int, int, int]:
    """(threads, MiB of the largest block, MiB of the budget): in every third more is needed than the budget."""
    chance = random.Random(seed)
    largest = chance.choice([4, 8, 12])
    threads = chance.choice([1, 1, 2, 3])
    budget = chance.choice([4, 8]) if seed % 3 == 0 else (4 * largest + 16) * threads
    return threads, largest, budget


def program(seed: int, change_budget: Callable[[int], None]) -> list[torch.Tensor]:
    threads, largest, budget = shape_of(seed)
    change_budget(budget)
    actors = [Actor(seed * 7 + i, largest) for i in range(threads)]
    failures: list[BaseException] = []

    def run(actor: Actor) -> None:
        try:
            actor.run(40)
        except BaseException as error:
            failures.append(error)

    others = [threading.Thread(target=run, args=(actor,)) for actor in actors[1:]]
    for other in others:
        other.start()
    run(actors[0])
    for other in others:
        other.join()
    if failures:
        raise failures[0]
    change_budget(budget * 2)
    results = [actor.result() for actor in actors]
    torch.cuda.synchronize()
    return results


def warm_up() -> None:
    """Loads what a capture must not load: both forms of the kernel, and the operators."""
    one, two = (torch.ones(1 << 10, device="cuda") for _ in range(2))
    for count in (1024, 1023):
        launch(one.data_ptr(), two.data_ptr(), count)
        two[:count].add_(one[:count], alpha=0.5)
    torch.cuda.synchronize()


def plain(seeds: range) -> list[list[torch.Tensor]]:
    results = [program(seed, lambda budget: None) for seed in seeds]
    gc.collect()
    torch.cuda.empty_cache()
    return results


def report(begin: float, seed: int, count: int) -> None:
    stats = tierpage.memory_stats()
    print(
        f"{count} programs up to seed {seed} equal, {time.perf_counter() - begin:.0f} s; this round: launches looked at "
        f"{stats['launches.guarded']}, at most {stats['overflow_bytes.peak'] / MIB:.0f} MiB of overflow",
        flush=True,
    )


def enable(first: int, paranoid: bool) -> None:
    tierpage.enable(
        "/var/tmp" if first % (2 * PER_ROUND) else None,
        device="cuda",
        device_budget="64MiB",
        host_budget="192MiB" if first % (2 * PER_ROUND) else "1GiB",
        nvme_budget="2GiB" if first % (2 * PER_ROUND) else None,
        paranoid=paranoid,
        launch_guard=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--paranoid", action="store_true")
    options = parser.parse_args()
    begin, count = time.perf_counter(), 0
    warm_up()
    for first in range(options.first, options.first + options.count, PER_ROUND):
        if time.perf_counter() - begin > options.seconds:
            break
        seeds = range(first, min(first + PER_ROUND, options.first + options.count))
        expected = plain(seeds)
        enable(first, options.paranoid)
        for seed, right in zip(seeds, expected, strict=True):
            faulthandler.dump_traceback_later(60, exit=True)
            try:
                found = program(seed, lambda budget: tierpage.set_budget("device", budget * MIB))
            except Exception:
                traceback.print_exc()
                print(f"seed {seed} FAILED, {shape_of(seed)}", flush=True)
                return 1
            if not all(torch.equal(a, b) for a, b in zip(right, found, strict=True)):
                print(f"seed {seed} DIFFERS, {shape_of(seed)}", flush=True)
                return 1
            count += 1
            gc.collect()
        faulthandler.cancel_dump_traceback_later()
        report(begin, seeds[-1], count)
        tierpage.disable()
        gc.collect()
    return 0


if __name__ == "__main__":
    sys.exit(main())
