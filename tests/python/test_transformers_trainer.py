"""A Trainer under the pager: the bits of a plain run, also after a resume, and figures in its logs."""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import harness
import tierpage
from checkpoints import same

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

import tierpage.transformers  # noqa: E402

NAMES = {
    "tierpage_device_bytes", "tierpage_host_bytes", "tierpage_nvme_bytes",
    "tierpage_fetched_bytes", "tierpage_written_back_bytes", "tierpage_stalled_seconds",
}  # fmt: skip


@pytest.fixture
def switch_on(tmp_path: Path) -> Iterator[Callable[[], None]]:
    (tmp_path / "spill").mkdir()

    def on() -> None:
        tierpage.enable(**(harness.settings("clock", str(tmp_path / "spill")) or {}))

    yield on
    gc.collect()
    tierpage.disable()


def make(folder: Path, callbacks: list[Any], steps: int = 4, **more: Any) -> Any:
    """A Trainer of a model whose states with those of AdamW are several times the device budget."""
    torch.manual_seed(5)
    config = transformers.LlamaConfig(
        hidden_size=96, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4, vocab_size=256
    )
    ids = torch.randint(0, 256, (16, 24), generator=torch.Generator().manual_seed(1), device="cpu")
    data = [{"input_ids": row.tolist(), "labels": row.tolist()} for row in ids]
    args = transformers.TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=2, logging_steps=1, save_steps=2, report_to="none",
        use_cpu=harness.DEVICE == "cpu", seed=5, **more,
    )  # fmt: skip
    return transformers.Trainer(
        model=transformers.LlamaForCausalLM(config), args=args, train_dataset=data, callbacks=callbacks
    )


class Heard(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
    def __init__(self) -> None:
        self.logs: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
        self.logs.append(dict(logs))


def test_bits_figures_and_resume(
    switch_on: Callable[[], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = make(tmp_path / "plain", [])
    plain.train()
    switch_on()
    heard = Heard()
    with caplog.at_level(logging.INFO, "tierpage"):
        paged = make(tmp_path / "paged", [tierpage.transformers.PagerCallback(), heard])
        paged.train()
    same(dict(plain.model.named_parameters()), dict(paged.model.named_parameters()))

    history = paged.state.log_history
    assert len(history) == 5
    assert all(set(entry) >= NAMES for entry in [*history, *heard.logs])
    assert all("step" not in entry for entry in heard.logs)
    assert [entry["loss"] for entry in history[:4]] == [entry["loss"] for entry in plain.state.log_history[:4]]
    stats = tierpage.memory_stats()
    assert 0 < sum(entry["tierpage_fetched_bytes"] for entry in history) <= stats["link_bytes.to_device"]
    assert 0 < history[-2]["tierpage_device_bytes"] <= tierpage.config().device_budget
    steps = [record.getMessage() for record in caplog.records if record.getMessage().startswith("step ")]
    assert len(steps) == 4
    written = json.loads((tmp_path / "paged" / "checkpoint-4" / "trainer_state.json").read_text())
    assert set(written["log_history"][0]) >= NAMES

    resumed = make(tmp_path / "paged", [tierpage.transformers.PagerCallback()])
    resumed.train(resume_from_checkpoint=str(tmp_path / "paged" / "checkpoint-2"))
    same(dict(plain.model.named_parameters()), dict(resumed.model.named_parameters()))


def test_it_does_nothing_while_tierpage_is_off(tmp_path: Path) -> None:
    trainer = make(tmp_path, [tierpage.transformers.PagerCallback()], steps=1)
    trainer.train()
    assert not any(name.startswith("tierpage") for entry in trainer.state.log_history for name in entry)


def test_figures_are_of_the_time_since_the_log_before(switch_on: Callable[[], None]) -> None:
    callback = tierpage.transformers.PagerCallback()
    state = transformers.TrainerState(log_history=[{"loss": 1.0, "step": 1}, {"other": 2.0, "step": 1}])
    switch_on()
    callback.on_train_begin(None, state, None)
    tensors = [torch.ones(128 * 1024, device=harness.DEVICE) for _ in range(6)]
    for tensor in tensors:
        tensor.add_(1)
    busy: dict[str, Any] = {"loss": 1.0}
    callback.on_log(None, state, None, busy)
    idle: dict[str, Any] = {"other": 2.0}
    callback.on_log(None, state, None, idle)
    assert busy["tierpage_written_back_bytes"] > 0
    assert idle["tierpage_fetched_bytes"] == idle["tierpage_written_back_bytes"] == 0
    assert state.log_history == [{"loss": 1.0, "step": 1}, {"step": 1, **idle}]
    callback.on_log(None, state, None, None)
