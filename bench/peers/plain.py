"""The run that every peer is compared with: the model as it is, all in device memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from train import checksums, loss_of, make_steps

from peers.job import Job, Training


def forward(job: Job) -> Callable[[torch.Tensor], torch.Tensor]:
    """The model itself."""
    return job.build().eval()


def training(job: Job) -> Training:
    """The step of bench/train.py."""
    model = job.build()
    apply = make_steps(model, hooks=False)

    def step(tokens: torch.Tensor) -> torch.Tensor:
        with torch.autocast(job.device, dtype=torch.bfloat16):
            loss = loss_of(model, tokens)
        loss.backward()
        apply()
        return loss

    return Training(step, lambda: checksums(model))
