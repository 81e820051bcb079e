"""torch.autograd.graph.save_on_cpu: what backward needs waits in RAM. For runs without recompute."""

from __future__ import annotations

import torch
from train import checksums, loss_of, make_steps

from peers.job import Job, Skipped, Training


def prepare(job: Job) -> Training:
    """The plain step with its saved tensors in locked RAM; parameters and optimizer states stay in device memory."""
    if job.recompute:
        raise Skipped("with recompute little is saved: give --no-recompute")
    model = job.build()
    apply = make_steps(model, hooks=False)

    def step(tokens: torch.Tensor) -> torch.Tensor:
        with (
            torch.autograd.graph.save_on_cpu(pin_memory=job.cuda),
            torch.autocast(job.device, dtype=torch.bfloat16),
        ):
            loss = loss_of(model, tokens)
        loss.backward()
        apply()
        return loss

    return Training(step, lambda: checksums(model))
