"""DeepSpeed ZeRO-3, one process, parameters and optimizer offloaded to RAM."""

from __future__ import annotations

import deepspeed
import torch
from deepspeed.utils import safe_get_full_fp32_param

from peers.job import Job, Training, bit_sum, loss_in_float32, start_process_group


def prepare(job: Job) -> Training:
    """The engine with DeepSpeed's own CPU AdamW, which it compiles when it is first made."""
    start_process_group(job)
    in_ram = {"device": "cpu", "pin_memory": job.cuda}
    config = {
        "train_micro_batch_size_per_gpu": job.batch,
        "gradient_accumulation_steps": 1,
        "bf16": {"enabled": True},
        "zero_optimization": {
            "stage": 3, "offload_param": in_ram, "offload_optimizer": in_ram,
            "overlap_comm": job.cuda, "contiguous_gradients": True,
        },
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "weight_decay": 0.01}},
        "steps_per_print": 1_000_000,
    }  # fmt: skip
    engine, *_ = deepspeed.initialize(model=job.build(home="cpu"), config=config)

    def step(tokens: torch.Tensor) -> torch.Tensor:
        loss = loss_in_float32(engine, tokens)
        engine.backward(loss)
        engine.step()
        return loss

    def sums() -> dict[str, int]:
        return {name: bit_sum(safe_get_full_fp32_param(p)) for name, p in engine.module.named_parameters()}

    return Training(step, sums)
