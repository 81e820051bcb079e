"""RoundPipe: layers go through the device in turn, micro-batches in between, the optimizer on the CPU beside it all."""

from __future__ import annotations

import torch
from llama_shape import Decoder, Layer
from roundpipe import RoundPipe, RoundPipeRunConfig
from roundpipe.attribute import ParamAttribute
from roundpipe.optim import Adam
from roundpipe.scheduler import ModelExecutePlan
from torch import nn
from torch.nn import functional

from peers.job import Job, Skipped, Training, bit_sum

MICROBATCHES = 2  # its default for one device


class LayerStage(nn.Module):
    """A layer with its own angles: a stage passes on nothing but its output."""

    def __init__(self, decoder: Decoder, layer: Layer) -> None:
        super().__init__()
        self.layer = layer
        self.angles = decoder.angles

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x, *self.angles(x))


class HeadStage(nn.Module):
    """Norm and head."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.norm, self.head = decoder.norm, decoder.head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(x))


def _loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Share of one micro-batch in the mean over the batch."""
    return functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten()) / MICROBATCHES


def _prepare(job: Job, is_async: bool) -> Training:
    if not job.recompute:
        raise Skipped("it always recomputes: leave --no-recompute out")
    if job.batch % MICROBATCHES:
        raise Skipped(f"--batch must be a multiple of {MICROBATCHES}")
    decoder = job.build(home="cpu").to(torch.bfloat16)
    stages = [decoder.embedding, *(LayerStage(decoder, layer) for layer in decoder.layers), HeadStage(decoder)]
    model = RoundPipe(
        nn.Sequential(*stages),
        optim_dtype=torch.float32,
        name="decoder",
        model_run_config=RoundPipeRunConfig(num_microbatch=MICROBATCHES),
    )
    optimizer = Adam(model.optim_parameters(), lr=1e-4, weight_decay=0.01, decoupled_weight_decay=True)

    def apply() -> None:
        optimizer.step()
        optimizer.zero_grad()

    def step(tokens: torch.Tensor) -> torch.Tensor:
        tokens = tokens.cpu()  # it uploads micro-batches itself
        # Left to itself it plans with what the driver says is free, and knows nothing of the cap.
        plan = ModelExecutePlan.auto("fused", model, model_memory_limit=0.6 * job.budget_bytes / 1e9)
        loss = model.forward_backward(
            input_args=(tokens[:, :-1].contiguous(),),
            label=tokens[:, 1:].contiguous(),
            loss_fn=_loss,
            run_config=RoundPipeRunConfig(execute_plan=plan),
        )
        model.step(apply, is_async=is_async)
        return loss

    def sums() -> dict[str, int]:
        masters = {name: ParamAttribute.get(p).optim for name, p in decoder.named_parameters()}
        return {name: bit_sum(master) for name, master in masters.items()}

    return Training(step, sums)


def prepare_async(job: Job) -> Training:
    """As it is meant to be used: a step computes with the parameters of the step before."""
    return _prepare(job, is_async=True)


def prepare_sync(job: Job) -> Training:
    """Every step waits for the optimizer."""
    return _prepare(job, is_async=False)
