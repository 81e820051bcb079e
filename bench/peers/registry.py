"""The table of peers: name, side, the file and function that prepare it, the package that it needs."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Peer:
    """One way to run the model. ``prepare`` takes a Job; it returns a forward (infer) or a Training (train)."""

    name: str
    side: str
    module: str
    function: str
    distribution: str = "torch"
    needs_cuda: bool = False
    capped: bool = True
    stale: bool = False
    """The losses belong to parameters of an earlier step, because the optimizer runs beside the next step."""
    note: str = ""

    def prepare(self) -> Callable[..., Any]:
        """Imports the peer's file, and with it its library."""
        return getattr(importlib.import_module(f"peers.{self.module}"), self.function)


PLAIN = {
    "infer": Peer("plain", "infer", "plain", "forward", capped=False, note="all in device memory, no cap"),
    "train": Peer("plain", "train", "plain", "training", capped=False, note="all in device memory, no cap"),
}

_HALF = "parameters travel as bfloat16, float32 masters in RAM: not the plain run's arithmetic"
_ON_CPU = "the optimizer runs on the CPU"

PEERS = (
    Peer("accelerate_cpu", "infer", "accelerate_offload", "from_ram", "accelerate"),
    Peer("accelerate_disk", "infer", "accelerate_offload", "from_disk", "accelerate",
         note="the page cache of the machine serves what fits into it"),
    Peer("diffusers_leaf", "infer", "diffusers_group", "leaf_level", "diffusers", note="streams, locked RAM"),
    Peer("diffusers_block", "infer", "diffusers_group", "block_level", "diffusers", note="streams, locked RAM, one layer a group"),
    Peer("double_buffer", "infer", "double_buffer", "prepare", note="two streams, locked RAM, every weight crosses once a forward"),
    Peer("fsdp2", "train", "fsdp2", "prepare", note=f"CPUOffloadPolicy, autocast as in the plain run; {_ON_CPU}"),
    Peer("fsdp2_bf16", "train", "fsdp2", "prepare_bf16", note=f"CPUOffloadPolicy, MixedPrecisionPolicy; {_HALF}; {_ON_CPU}"),
    Peer("fsdp2_save_on_cpu", "train", "fsdp2", "prepare_save_on_cpu", note=f"both together, for runs without recompute; {_ON_CPU}"),
    Peer("save_on_cpu", "train", "saved_tensors", "prepare", note="parameters and states stay in device memory"),
    Peer("deepspeed_zero3", "train", "deepspeed_zero3", "prepare", "deepspeed", note=f"{_HALF}; {_ON_CPU}"),
    Peer("roundpipe", "train", "roundpipe_pipeline", "prepare_async", "roundpipe", needs_cuda=True, stale=True,
         note=f"is_async=True; {_HALF}; {_ON_CPU}"),
    Peer("roundpipe_sync", "train", "roundpipe_pipeline", "prepare_sync", "roundpipe", needs_cuda=True,
         note=f"is_async=False; {_HALF}; {_ON_CPU}"),
)  # fmt: skip


def chosen(side: str, only: list[str]) -> list[Peer]:
    """The peers of a side, those named in ``only`` where it is not empty. Raises ValueError for an unknown name."""
    peers = [peer for peer in PEERS if peer.side == side]
    unknown = set(only) - {peer.name for peer in peers}
    if unknown:
        raise ValueError(
            f"no {side} peer is called {', '.join(sorted(unknown))}; there are {', '.join(peer.name for peer in peers)}"
        )
    return [peer for peer in peers if not only or peer.name in only]
