"""The code of docs/recipes.md runs as it stands, on a small model; only its folders are others."""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import harness
import tierpage

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

RECIPES = (Path(__file__).resolve().parents[2] / "docs" / "recipes.md").read_text()
BLOCKS = re.findall(r"^## (.+?)$.*?^```python\n(.*?)^```$", RECIPES, re.MULTILINE | re.DOTALL)
WORDS = ["<unk>", "the", "largest", "river", "is", "deep"]


def make_model() -> Any:
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4, vocab_size=len(WORDS),
        bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What stands for /data: a checkpoint with a tokenizer, a scratch folder; and small budgets."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = ["input_ids", "attention_mask"]
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<unk>", model_input_names=names
    )
    fast.save_pretrained(tmp_path / "model")
    make_model().save_pretrained(tmp_path / "model")
    (tmp_path / "scratch").mkdir()
    settings = dict(harness.settings("clock", "") or {})
    del settings["nvme_path"], settings["device"]
    monkeypatch.setenv("TIERPAGE_CONF", ",".join(f"{name}:{value}" for name, value in settings.items()))
    yield tmp_path
    gc.collect()
    tierpage.disable()


def run(title: str, data: Path, **given: Any) -> dict[str, Any]:
    code = dict(BLOCKS)[title].replace("/data/", f"{data}/")
    names = {"torch": torch, "make_model": make_model, **given}
    exec(compile(code, f"docs/recipes.md: {title}", "exec"), names)
    return names


def rows(count: int) -> list[dict[str, list[int]]]:
    ids = torch.randint(0, len(WORDS), (count, 12), generator=torch.Generator().manual_seed(1), device="cpu").tolist()
    return [{"input_ids": row, "labels": row} for row in ids]


def make_loader() -> Any:
    return torch.utils.data.DataLoader(rows(6), batch_size=2, collate_fn=transformers.default_data_collator)


def test_every_block_has_a_test() -> None:
    assert RECIPES.count("```python") == len(BLOCKS) == 4


def test_inference(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = run("Inference with transformers", data)
    assert all(tierpage.where(parameter).checkpoint > 0 for parameter in names["model"].parameters())
    assert capsys.readouterr().out.startswith("['")


def test_trainer(data: Path) -> None:
    names = run("Fine-tuning with Trainer", data, dataset=rows(16))
    assert names["trainer"].state.global_step == 4
    state = json.loads((data / "run" / "checkpoint-4" / "trainer_state.json").read_text())
    assert "tierpage_fetched_bytes" in state["log_history"][0]


def test_lora(data: Path) -> None:
    pytest.importorskip("peft")
    batches = [{name: value.to(harness.DEVICE) for name, value in batch.items()} for batch in make_loader()]
    names = run("LoRA with PEFT", data, loader=batches)
    trained = [parameter for parameter in names["model"].parameters() if parameter.requires_grad]
    frozen = [parameter for parameter in names["model"].parameters() if not parameter.requires_grad]
    assert all(tierpage.where(parameter).checkpoint >= tierpage.where(parameter).bytes for parameter in frozen)
    assert any(bool(parameter.any()) for parameter in trained[1::2])  # the second matrix of an adapter begins as zero
    assert (data / "adapter" / "adapter_model.safetensors").exists()


def test_accelerate(data: Path) -> None:
    names = run("A loop of your own with accelerate", data, loader=make_loader())
    assert all(tierpage.where(parameter).paged for parameter in names["model"].parameters())
    assert (data / "run" / "model.safetensors").exists()
    names["accelerator"].load_state(str(data / "run"))
