"""diffusers' group offloading: groups of modules are brought up ahead on a stream of their own, from locked RAM."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.hooks import apply_group_offloading

from peers.job import Job


def _offloaded(job: Job, **options: object) -> Callable[[torch.Tensor], torch.Tensor]:
    model = job.build(home="cpu").eval()
    apply_group_offloading(
        model,
        onload_device=torch.device(job.device),
        offload_device=torch.device("cpu"),
        use_stream=job.cuda,  # the host device has no streams
        **options,
    )
    return model


def leaf_level(job: Job) -> Callable[[torch.Tensor], torch.Tensor]:
    """Every linear layer is a group."""
    return _offloaded(job, offload_type="leaf_level")


def block_level(job: Job) -> Callable[[torch.Tensor], torch.Tensor]:
    """Every decoder layer is a group."""
    return _offloaded(job, offload_type="block_level", num_blocks_per_group=1)
