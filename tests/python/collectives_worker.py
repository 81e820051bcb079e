"""One of two ranks that talk over gloo, or over NCCL on two GPUs: ``python -m collectives_worker PROGRAM RANK FOLDER CONFIGURATION``.

Prints a checksum of what the program computed; the test compares a plain run with a paged one.
"""

from __future__ import annotations

import datetime
import faulthandler
import sys
import threading
import time
from collections.abc import Callable

import torch
import torch.distributed as dist

import harness
import tierpage

CUDA = harness.DEVICE != "cpu"
SCALE = 4 if CUDA else 1  # of each side of a matrix: a page is 2 MiB there
BUDGET = 12 * SCALE**2 * harness.MIB
BUDGETS = {"data_parallel": BUDGET * 5 // 3}  # its buckets are memory that no operator has used when they are made


def checksum(tensor: torch.Tensor) -> int:
    """Of all bits, by operators alone: what is looked at through a pointer stays for a while."""
    return int(tensor.view(torch.int32).sum())


def others(count: int = 16) -> list[torch.Tensor]:
    """More than the device holds, a twelfth of its budget each."""
    return [full(512, 512, float(i)) for i in range(count)]


def full(rows: int, columns: int, value: float) -> torch.Tensor:
    return torch.full((rows * SCALE, columns * SCALE), value)


def sweep(tensors: list[torch.Tensor]) -> None:
    for tensor in tensors:
        tensor.add_(1)


def asynchronous(rank: int) -> list[torch.Tensor]:
    """The peer comes late; meanwhile the tensor is told to leave, and room is short."""
    tensor = full(1024, 1024, float(rank + 1))
    rest = others()
    if rank == 1:
        time.sleep(0.7)
    work = dist.all_reduce(tensor, async_op=True)
    if tierpage.is_enabled() and rank == 0:
        left = tierpage.evict(tensor)
        assert CUDA or left == 0, "gloo writes into it"  # NCCL's stream is waited for, and it may leave
        sweep(rest)
        assert CUDA or tierpage.where(tensor).device > 0
    work.wait()
    return [tensor]


def messages(rank: int) -> list[torch.Tensor]:
    """What waits for its message, or is on its way out, is there when it is read or written."""
    tensors = [full(512, 512, float(10 * i) if rank else 0.0) for i in range(4)]
    rest = others()
    if rank:
        time.sleep(0.5)
    works = [dist.isend(t, 0, tag=i) if rank else dist.irecv(t, 1, tag=i) for i, t in enumerate(tensors)]
    for _ in range(2):
        sweep(rest)
    for work in works:
        work.wait()
    if rank:
        time.sleep(0.3)
    batch = [dist.P2POp(dist.irecv if rank else dist.isend, t, 1 - rank) for t in tensors]
    for work in dist.batch_isend_irecv(batch):
        sweep(rest[:4])
        work.wait()
    return [*tensors, *rest[4:]]


def messages_only(rank: int) -> list[torch.Tensor]:
    """One thread sends batches over and over, and runs no operator; another one needs the room when they have ended."""
    mine = [full(512, 512, float(rank + i)) for i in range(6)]
    rest = others()
    dist.barrier()

    def send() -> None:
        if CUDA:
            torch.cuda.set_device(rank)
        for _ in range(20):
            kinds = [dist.irecv, dist.isend] if rank else [dist.isend, dist.irecv]
            batch = [dist.P2POp(kinds[i % 2], t, 1 - rank) for i, t in enumerate(mine)]
            for work in dist.batch_isend_irecv(batch):
                work.wait()
        if CUDA:
            torch.cuda.synchronize()
        sent.set()
        swept.wait()

    sent, swept = threading.Event(), threading.Event()
    sender = threading.Thread(target=send)
    sender.start()
    sent.wait()
    whole = full(1024, 2560, 1.0)  # ten of the budget's twelve parts: not beside six that stay
    if tierpage.is_enabled():
        for tensor in mine:
            tierpage.evict(tensor)
            assert tierpage.where(tensor).device == 0, "nobody uses it any more"
    sweep(rest)
    whole.add_(1)
    swept.set()
    sender.join()
    return [*mine, *rest, whole]


def functional(rank: int) -> list[torch.Tensor]:
    """Functional collectives wait in wait_tensor, which any use of the result calls."""
    import torch.distributed._functional_collectives as collectives

    tensor = full(1024, 512, float(rank + 1))
    rest = others()
    if rank == 1:
        time.sleep(0.5)
    reduced = collectives.all_reduce(tensor, "sum", dist.group.WORLD)
    gathered = collectives.all_gather_tensor(tensor, 0, dist.group.WORLD)
    sweep(rest)
    return [reduced + 0, gathered + 0, *rest]


def data_parallel(rank: int) -> list[torch.Tensor]:
    """A model that takes twice the budget with its states; each bucket is reduced while the backward pass goes on."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(*[torch.nn.Linear(512 * SCALE, 512 * SCALE, bias=False) for _ in range(12)])
    model = torch.nn.parallel.DistributedDataParallel(
        net, bucket_cap_mb=2 * SCALE**2, gradient_as_bucket_view=True, init_sync=False
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for step in range(4):
        generator = torch.Generator(harness.DEVICE).manual_seed(step * 2 + rank)
        model(torch.randn(16, 512 * SCALE, generator=generator)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
    return [p.detach() for p in net.parameters()]


PROGRAMS: dict[str, Callable[[int], list[torch.Tensor]]] = {
    "asynchronous": asynchronous,
    "messages": messages,
    "messages_only": messages_only,
    "functional": functional,
    "data_parallel": data_parallel,
}


def main(program: str, rank: int, folder: str, configuration: str) -> None:
    faulthandler.dump_traceback_later(100, exit=True)
    harness.make_deterministic()
    torch.set_num_threads(1)
    patience = datetime.timedelta(seconds=60)
    if CUDA:
        torch.cuda.set_device(rank)
        torch.set_default_device(f"cuda:{rank}")
    backend = "nccl" if CUDA else "gloo"
    dist.init_process_group(backend, init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=patience)
    if CUDA:
        dist.all_reduce(torch.zeros(1))  # NCCL's ranks meet in their first collective; gloo's have met
    if configuration == "paged":
        tierpage.enable(
            device=f"cuda:{rank}" if CUDA else "cpu",
            device_budget=BUDGETS.get(program, BUDGET),
            host_budget=BUDGET * 20,
            **({} if CUDA else {"min_paged_bytes": "64KiB", "granule_bytes": "64KiB", "frame_bytes_max": "1MiB"}),
        )
    result = PROGRAMS[program](rank)
    for tensor in result:
        print(checksum(tensor))
    if configuration == "paged":
        assert tierpage.memory_stats()["faults.count"] > 0, "nothing was short of room"
    result.clear()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4])
