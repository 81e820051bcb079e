"""The adapters of the training benchmark: what they are at first, and that they alone are trained."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))
from llama_shape import SHAPES, build
from lora import adapt
from train import checksums, loss_of, make_batch, make_steps


def test_only_adapters_are_trained_and_they_change_nothing_at_first() -> None:
    shape = SHAPES["tiny"]
    model = build(shape, "cpu", torch.bfloat16)
    batch = make_batch(shape, 1, 16, 0, "cpu")
    with torch.no_grad():
        before = model(batch[:, :-1])
    adapt(model, 4, "cpu")
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model(batch[:, :-1]), before)
    sums = checksums(model)
    apply = make_steps(model, hooks=False)
    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(model, batch)
        loss.backward()
        apply()
    after = checksums(model)
    changed = {name for name in sums if sums[name] != after[name]}
    adapters = {name for name in sums if name.endswith((".first", ".second"))}
    assert len(adapters) == 2 * 7 * shape.layers
    assert changed == adapters
