"""accelerate's offloading: hooks copy each module's weights to the device before its forward, and drop them after it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from accelerate import cpu_offload, disk_offload

from peers.job import Job


def from_ram(job: Job) -> Callable[[torch.Tensor], torch.Tensor]:
    """``cpu_offload``: the weights are in RAM."""
    return cpu_offload(job.build(home="cpu").eval(), execution_device=torch.device(job.device))


def from_disk(job: Job) -> Callable[[torch.Tensor], torch.Tensor]:
    """``disk_offload``: the weights are memory-mapped files."""
    folder = job.folder / "weights"
    return disk_offload(job.build(home="cpu").eval(), str(folder), execution_device=torch.device(job.device))
