"""What every peer gets: the model, where it runs, what it may take. And what a training peer gives back."""

from __future__ import annotations

import argparse
import dataclasses
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed
from llama_shape import SHAPES, Decoder, Shape, build
from train import loss_of


class Skipped(Exception):
    """This peer cannot run here; the text says why."""


@dataclass(frozen=True)
class Job:
    """One measurement of one peer."""

    shape: Shape
    tokens: int
    batch: int
    recompute: bool
    device: str
    dtype: torch.dtype
    budget_bytes: int
    folder: Path
    """An empty folder on a local disk, for peers that use one."""

    @property
    def cuda(self) -> bool:
        """True where there is something to lock memory for, and streams."""
        return self.device == "cuda"

    def build(self, home: str | None = None) -> Decoder:
        """The model. With ``home="cpu"`` its weights are drawn on the device, so as to be the same, and kept in RAM."""
        model = build(self.shape, self.device, self.dtype, recompute=self.recompute, home=home)
        if self.cuda:
            torch.cuda.empty_cache()
        return model


@dataclass(frozen=True)
class Training:
    """A training peer that is ready: one step on a batch, and the sums of its parameters' bits afterwards."""

    step: Callable[[torch.Tensor], torch.Tensor]
    sums: Callable[[], dict[str, int]]


def bit_sum(parameter: torch.Tensor) -> int:
    """Sum of a float32 tensor's bits as integers, the same that bench/train.py takes."""
    return int(parameter.detach().view(torch.int32).to(torch.int64).sum())


def loss_in_float32(model: Callable[[torch.Tensor], torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    """bench/train.py's loss for a model whose logits are bfloat16; there autocast takes the loss in float32."""
    return loss_of(lambda inputs: model(inputs).float(), tokens)


def job_of(args: argparse.Namespace, folder: Path) -> Job:
    """The job that the command line describes."""
    shape = SHAPES[args.shape]
    if args.layers:
        shape = dataclasses.replace(shape, layers=args.layers)
    return Job(
        shape, args.tokens, args.batch, not args.no_recompute, args.device,
        torch.bfloat16 if args.side == "infer" else torch.float32, args.budget_bytes, folder,
    )  # fmt: skip


def start_process_group(job: Job) -> None:
    """A group of this process alone, for libraries that are written for many."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for library in ("GLOO", "NCCL"):
        os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo")  # nobody else takes part
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    if job.cuda:
        torch.cuda.set_device(0)
    store = torch.distributed.FileStore(str(job.folder / "store"), 1)
    backend = "cpu:gloo,cuda:nccl" if job.cuda else "gloo"
    torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
