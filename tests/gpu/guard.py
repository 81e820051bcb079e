"""Programs that use paged memory past all operators, on a GPU: each runs plain and then paged, and must give equal bits.

    python tests/gpu/guard.py [NAME...]     prints one line for each program; exit code 1 where one differs

Addresses are taken long before they are used, so nothing but a look at the launch itself can know of the use.
"""

from __future__ import annotations

import gc
import random
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl

import tierpage
from tierpage.session import current_or_none

MIB = 1 << 20
BUDGET = "256MiB"
LARGER = "512MiB"  # where graphs and their workspaces take a part of it
Program = Callable[[], list[torch.Tensor]]


@triton.jit
def add_at(source, target, count, factor, BLOCK: tl.constexpr):
    """target = target * factor + source; both are addresses of floats."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    read = source.to(tl.pointer_type(tl.float32))
    write = target.to(tl.pointer_type(tl.float32))
    value = tl.load(write + at, mask=at < count) * factor + tl.load(read + at, mask=at < count)
    tl.store(write + at, value, mask=at < count)


def launch(source: int, target: int, count: int, factor: float = 0.5) -> None:
    add_at[(triton.cdiv(count, 1024),)](source, target, count, factor, BLOCK=1024)


def tensors(count: int, mib: int = 16, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator("cuda").manual_seed(seed)
    return [torch.randn(mib * MIB // 4, device="cuda", generator=generator) for _ in range(count)]


def raw_addresses() -> list[torch.Tensor]:
    """Triton kernels over addresses that were taken at the beginning."""
    all_of_them = tensors(40)
    addresses = [tensor.data_ptr() for tensor in all_of_them]
    for step in range(4):
        for i, address in enumerate(addresses):
            launch(address, addresses[(i * 7 + step) % len(addresses)], all_of_them[0].numel())
        for tensor in all_of_them[::3]:
            tensor.mul_(0.5)
    return all_of_them


def raw_streams() -> list[torch.Tensor]:
    """The same on several streams, with evictions while kernels are queued behind long ones."""
    all_of_them = tensors(32)
    addresses = [tensor.data_ptr() for tensor in all_of_them]
    streams = [torch.cuda.Stream() for _ in range(3)]
    chance = random.Random(1)
    torch.cuda.synchronize()
    for _ in range(120):
        stream = chance.choice(streams)
        first, second = chance.sample(range(len(addresses)), 2)
        for other in streams:
            stream.wait_stream(other)
        with torch.cuda.stream(stream):
            if chance.random() < 0.2:
                torch.cuda._sleep(20_000_000)
            launch(addresses[first], addresses[second], all_of_them[0].numel())
        if chance.random() < 0.3 and current_or_none() is not None:
            tierpage.evict(all_of_them[second])
    for stream in streams:
        torch.cuda.current_stream().wait_stream(stream)
    return all_of_them


def copies() -> list[torch.Tensor]:
    """Copies by the runtime's own calls, past torch."""
    import cupy

    all_of_them = tensors(32)
    addresses = [tensor.data_ptr() for tensor in all_of_them]
    size = all_of_them[0].numel() * 4
    torch.cuda.synchronize()
    for step in range(3):
        for i, address in enumerate(addresses):
            target = addresses[(i * 5 + step + 1) % len(addresses)]
            if target != address:
                cupy.cuda.runtime.memcpyAsync(target, address, size, 3, 0)
    cupy.cuda.runtime.memsetAsync(addresses[3], 0, size, 0)
    torch.cuda.synchronize()
    return all_of_them


def graph() -> list[torch.Tensor]:
    """A graph over more than the budget is captured in parts and replayed, with other work in between."""
    width = 2048
    weights = [
        torch.randn(width, width, device="cuda", generator=torch.Generator("cuda").manual_seed(i)) / 45
        for i in range(36)
    ]
    x = torch.randn(64, width, device="cuda", generator=torch.Generator("cuda").manual_seed(99))
    graphs, results = [], []
    side = torch.cuda.Stream()
    for part in range(0, len(weights), 6):
        with torch.cuda.stream(side):
            y = x
            for weight in weights[part : part + 6]:
                y = torch.relu(y @ weight)
        torch.cuda.current_stream().wait_stream(side)
        recorded = torch.cuda.CUDAGraph()
        with torch.cuda.graph(recorded, pool=graphs[0].pool() if graphs else None):
            y = x
            for weight in weights[part : part + 6]:
                y = torch.relu(y @ weight)
        graphs.append(recorded)
        results.append(y)
    for step in range(4):
        for recorded in graphs:
            recorded.replay()
        x.mul_(0.9)
        for weight in weights[step::5]:
            weight.mul_(1.01)
    return [result.clone() for result in results]


def compiled_graphs() -> list[torch.Tensor]:
    """torch.compile(mode="reduce-overhead")."""
    torch.manual_seed(0)
    layers = [
        torch.nn.Sequential(torch.nn.Linear(1536, 6144), torch.nn.GELU(), torch.nn.Linear(6144, 1536)) for _ in range(6)
    ]
    layer = [one.cuda().requires_grad_(False) for one in layers]
    run = torch.compile(lambda one, x: one(x), mode="reduce-overhead")
    x = torch.randn(64, 1536, device="cuda", generator=torch.Generator("cuda").manual_seed(5))
    for _ in range(4):
        torch.compiler.cudagraph_mark_step_begin()
        y = x
        for one in layer:
            y = run(one, y).clone()
    return [y]


def side_stream_in_operator() -> list[torch.Tensor]:
    """A custom operator whose body works on a stream of its own."""
    side = torch.cuda.Stream()

    def body(x: torch.Tensor) -> torch.Tensor:
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            torch.cuda._sleep(5_000_000)
            scratch = x * 3
            y = scratch + 1
            del scratch
        torch.cuda.current_stream().wait_stream(side)
        return y

    name = f"guardtest::body{int(current_or_none() is not None)}"
    operator = torch.library.custom_op(name, body, mutates_args=(), schema="(Tensor x) -> Tensor")
    all_of_them = tensors(32)
    return [operator(operator(tensor)) for tensor in all_of_them]


def profiled() -> list[torch.Tensor]:
    """torch's profiler goes first: the guard steps aside for it, and the profiler sees the kernels."""
    all_of_them = tensors(32)
    for tensor in all_of_them:
        tensor.mul_(0.5)

    def work() -> None:
        for tensor in all_of_them:
            tensor.add_(1)
        torch.cuda.synchronize()

    if current_or_none() is None:
        work()  # once it has run, the profiler keeps CUPTI for this process
    else:
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profiler:
            work()
        if not any("elementwise" in event.name for event in profiler.events()):
            raise RuntimeError("the profiler saw no kernel")
        state = tierpage.config().in_force["launch_guard"]
        if not str(state).startswith("off: torch's profiler"):
            raise RuntimeError(f"launch_guard is {state!r}")
    for tensor in all_of_them:
        tensor.mul_(3)
    return all_of_them


def microseconds(work: Callable[[], Any], count: int = 4000) -> float:
    best = float("inf")
    for _ in range(5):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(count):
            work()
        best = min(best, (time.perf_counter() - start) / count * 1e6)
    return best


def print_pairs(title: str, works: dict[str, Callable[[], Any]], library: Any) -> None:
    """The best of three turns each way."""
    best: dict[tuple[str, bool], float] = {}
    for turn in range(6):
        guarded = turn % 2 == 0
        if guarded:
            library.open_guard()
        else:
            library.close_guard()
        for name, work in works.items():
            work()  # the first announcement switches the callbacks on
            best[name, guarded] = min(best.get((name, guarded), float("inf")), microseconds(work))
    for name in works:
        print(
            f"{title}: {name:12} {best[name, True]:.2f} us with the guard, {best[name, False]:.2f} without", flush=True
        )


def cost() -> None:
    """Microseconds of operators on paged tensors and of a raw launch, with and without the guard."""
    from tierpage import session

    tierpage.enable(device="cuda", device_budget="2GiB", host_budget="4GiB", launch_guard=True)
    all_of_them = tensors(8, mib=4)
    one, two = all_of_them[:2]
    addresses = [one.data_ptr(), two.data_ptr()]
    small = one[:4]
    works: dict[str, Callable[[], Any]] = {
        "operator": lambda: small.add_(1),
        "matmul": lambda: torch.mm(one[:4096].view(64, 64), two[:4096].view(64, 64)),
        "raw launch": lambda: launch(addresses[0], addresses[1], 4),
    }
    library = session.current().library
    print_pairs("all fits", works, library)
    tierpage.evict(all_of_them[2])
    all_of_them[2].add_(1)
    print_pairs("under pressure", works, library)
    tierpage.disable()


PROGRAMS: list[Program] = [
    raw_addresses,
    raw_streams,
    copies,
    graph,
    compiled_graphs,
    side_stream_in_operator,
    profiled,
]


def outcome(program: Program) -> tuple[Any, float]:
    start = time.perf_counter()
    result = [tensor.cpu() for tensor in program()]
    return result, time.perf_counter() - start


def compare(program: Program) -> bool:
    plain, _ = outcome(program)
    torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()
    tierpage.enable(
        device="cuda",
        device_budget=LARGER if "graph" in program.__name__ else BUDGET,
        host_budget="4GiB",
        launch_guard=True,
    )
    try:
        before = tierpage.memory_stats()
        paged, seconds = outcome(program)
        after = tierpage.memory_stats()
        missed = current_or_none().runtime.missed_accesses()
    finally:
        torch.compiler.reset()
    same = all(torch.equal(a, b) for a, b in zip(plain, paged, strict=True))
    guarded = after["launches.guarded"] - before["launches.guarded"]
    fetched = sum(value - before[key] for key, value in after.items() if key.startswith("fetch_bytes"))
    print(
        f"{program.__name__:24} {'ok' if same else 'DIFFERS'}  {seconds:.2f} s, fetched {fetched / MIB:.0f} MiB, "
        f"launches of their own {guarded}, missed {missed}",
        flush=True,
    )
    tierpage.disable()
    return same


def main() -> int:
    wanted = sys.argv[1:]
    if wanted == ["cost"]:
        cost()
        return 0
    failed = 0
    for program in PROGRAMS:
        if wanted and program.__name__ not in wanted:
            continue
        try:
            failed += not compare(program)
        except Exception:
            traceback.print_exc()
            print(f"{program.__name__:24} FAILED", flush=True)
            return 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
