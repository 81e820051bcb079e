"""FSDP2 (fully_shard) with CPUOffloadPolicy, one process: parameters, gradients and optimizer states live in RAM."""

from __future__ import annotations

import contextlib

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from train import loss_of

from peers.job import Job, Skipped, Training, bit_sum, loss_in_float32, start_process_group


def _prepare(job: Job, precision: MixedPrecisionPolicy | None, save_on_cpu: bool = False) -> Training:
    start_process_group(job)
    model = job.build(home="cpu")
    options = {
        "mesh": init_device_mesh(job.device, (1,)),
        "offload_policy": CPUOffloadPolicy(pin_memory=job.cuda),
        "mp_policy": precision or MixedPrecisionPolicy(),
    }
    for layer in model.layers:
        fully_shard(layer, **options)
    fully_shard(model, **options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step(tokens: torch.Tensor) -> torch.Tensor:
        with contextlib.ExitStack() as stack:
            if save_on_cpu:
                stack.enter_context(torch.autograd.graph.save_on_cpu(pin_memory=job.cuda))
            if precision is None:
                stack.enter_context(torch.autocast(job.device, dtype=torch.bfloat16))
            loss = (loss_of if precision is None else loss_in_float32)(model, tokens)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    # The one process holds each parameter as a whole.
    return Training(step, lambda: {name: bit_sum(p.to_local()) for name, p in model.named_parameters()})


def prepare(job: Job) -> Training:
    """The arithmetic of the plain run: float32 parameters, autocast."""
    return _prepare(job, None)


def prepare_bf16(job: Job) -> Training:
    """As FSDP2 is mostly used: bfloat16 copies of the parameters, gradients added up in float32."""
    return _prepare(job, MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32))


def prepare_save_on_cpu(job: Job) -> Training:
    """With save_on_cpu, which is what makes a run without recompute small."""
    if job.recompute:
        raise Skipped("with recompute little is saved: give --no-recompute")
    return _prepare(job, None, save_on_cpu=True)
