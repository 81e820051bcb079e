"""What a careful person writes by hand for this one model: two buffers, one is filled while the other one is used.

The model is cut into parts (embedding, each layer, the tail). Each part's weights are one flat, locked piece of RAM, so
that one copy brings them up. Part k goes into buffer k mod 2. Its copy waits until the part that used the buffer has run;
its kernels wait for the copy. The copies run on and on: the end of a forward begins the next one's first parts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from peers.job import Job

BUFFERS = 2


class Part:
    """Consecutive modules whose weights travel together."""

    def __init__(self, modules: list[nn.Module], lock: bool) -> None:
        self.first, self.last = modules[0], modules[-1]
        self.weights: list[tuple[nn.Module, str, torch.Size, int]] = []  # owner, name, shape, first element
        count = 0
        for owner in (inner for module in modules for inner in module.modules()):
            for name, weight in owner.named_parameters(recurse=False):
                self.weights.append((owner, name, weight.shape, count))
                count += weight.numel()
        dtype = next(self.first.parameters()).dtype
        self.flat = torch.empty(count, dtype=dtype, pin_memory=lock)
        for owner, name, shape, start in self.weights:
            weight = getattr(owner, name)
            self.flat[start : start + weight.numel()].view(shape).copy_(weight.detach())
            owner._parameters[name] = None  # its memory goes; point_into gives it another

    def views(self, buffer: torch.Tensor) -> list[nn.Parameter]:
        """This part's weights as they lie in ``buffer``."""
        return [
            nn.Parameter(buffer[start : start + shape.numel()].view(shape), requires_grad=False)
            for _, _, shape, start in self.weights
        ]

    def point_to(self, views: list[nn.Parameter]) -> None:
        """Makes the modules use these weights."""
        for (owner, name, _, _), view in zip(self.weights, views, strict=True):
            owner._parameters[name] = view


class DoubleBuffer:
    """Runs ahead of the forward by two parts."""

    def __init__(self, parts: list[Part], device: str) -> None:
        self.parts = parts
        largest = max(parts, key=lambda part: part.flat.numel()).flat
        self.buffers = [torch.empty_like(largest, device=device, pin_memory=False) for _ in range(BUFFERS)]
        # An odd number of parts meets either buffer, in turn.
        self.views = [[part.views(buffer) for buffer in self.buffers] for part in parts]
        self.used = self.loaded = 0  # parts so far, over all forwards
        self.stream = torch.cuda.Stream() if device == "cuda" else None
        self.full = [torch.cuda.Event() for _ in range(BUFFERS)] if self.stream else []
        self.empty = [torch.cuda.Event() for _ in range(BUFFERS)] if self.stream else []
        for part in parts:
            part.first.register_forward_pre_hook(lambda module, inputs, part=part: self.before(part))
            part.last.register_forward_hook(lambda module, inputs, output: self.after())
        for _ in range(BUFFERS):
            self.load()

    def load(self) -> None:
        """Begins the copy of the next part, behind the last use of its buffer."""
        index, slot = self.loaded % len(self.parts), self.loaded % BUFFERS
        source = self.parts[index].flat
        target = self.buffers[slot][: source.numel()]
        if self.stream is None:
            target.copy_(source)
        else:
            with torch.cuda.stream(self.stream):
                if self.loaded >= BUFFERS:
                    self.stream.wait_event(self.empty[slot])
                target.copy_(source, non_blocking=True)
                self.full[slot].record()
        self.loaded += 1

    def before(self, part: Part) -> None:
        """The part's kernels wait for its copy."""
        index, slot = self.used % len(self.parts), self.used % BUFFERS
        assert self.parts[index] is part, "the parts run in the order in which they were given"
        if self.stream is not None:
            torch.cuda.current_stream().wait_event(self.full[slot])
        part.point_to(self.views[index][slot])

    def after(self) -> None:
        """The buffer of the part that ran is free after its last kernel: the copy of a later part may go there."""
        if self.stream is not None:
            self.empty[self.used % BUFFERS].record()
        self.used += 1
        self.load()


def prepare(job: Job) -> Callable[[torch.Tensor], torch.Tensor]:
    """The model with its weights in flat, locked RAM."""
    model = job.build(home="cpu").eval()
    pieces = [[model.embedding], *([layer] for layer in model.layers), [model.norm, model.head]]
    buffers = DoubleBuffer([Part(modules, job.cuda) for modules in pieces], job.device)
    model.double_buffer = buffers  # lives as long as the model
    return model
