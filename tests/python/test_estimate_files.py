"""`tierpage estimate` of files: configurations of transformers, checkpoints, and files that lie."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tierpage import cli
from tierpage._estimate.subjects import subject_of

LLAMA = {
    "model_type": "llama", "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4,
    "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 4096, "torch_dtype": "bfloat16",
}  # fmt: skip


def run(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert cli.main(["estimate", *words, "--machine", "rtx4090", "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(["estimate", *words, "--machine", "rtx4090"]) == 2
    return capsys.readouterr().err


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Twelve square matrices of 2 MiB, and a small vector."""
    tensors = {f"layers.{i}.weight": torch.zeros(1024, 1024, dtype=torch.bfloat16) for i in range(12)}
    save_file(tensors | {"norm": torch.zeros(16)}, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_a_checkpoint_is_read_tensor_by_tensor(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [tensor.name for tensor in subject_of(str(weights)).tensors]
    assert names == [*(f"layers.{i}.weight" for i in range(12)), "norm"]
    out = run(capsys, str(weights), "--device-budget", "32MiB,8MiB")
    assert out["parameters"] == 12 * 1024**2 + 16
    assert out["parameter_bytes"] == 12 * 2 * 1024**2 + 64
    assert out["rows"][0]["all_fits_device"]
    assert out["rows"][1]["up_bytes"] >= 12 * 2 * 1024**2 - (8 << 20)
    assert run(capsys, str(weights), "--mode", "decode")["rows"][0]["seconds"] < out["rows"][0]["seconds"]
    assert run(capsys, str(weights.parent))["parameters"] == out["parameters"]


def test_a_checkpoint_tells_nothing_of_training(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "holds sizes and no operators" in refusal(capsys, str(weights), "--mode", "train")
    assert cli.main(["estimate", str(weights), "--machine", "h100"]) == 0
    assert "not known" in capsys.readouterr().out


@pytest.mark.parametrize("length", [4, 40, 5_000_000])
def test_a_checkpoint_that_ends_too_soon_is_refused(
    weights: Path, length: int, capsys: pytest.CaptureFixture[str]
) -> None:
    weights.write_bytes(weights.read_bytes()[:length])
    assert "cannot be loaded" in refusal(capsys, str(weights))


def test_a_folder_without_anything_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "holds no model.safetensors" in refusal(capsys, str(tmp_path))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("not json", "no configuration"),
        ("[1]", "not an object with a model_type"),
        ('{"model_type": 3}', "not an object with a model_type"),
        (json.dumps({**LLAMA, "auto_map": {"AutoModel": "evil.Model"}}), "code of its own"),
        (json.dumps({**LLAMA, "quantization_config": {"bits": 4}}), "quantized"),
        (json.dumps({**LLAMA, "num_hidden_layers": 10**9}), "num_hidden_layers is 1000000000"),
        (json.dumps({**LLAMA, "hidden_size": 10**12}), "hidden_size"),
        (json.dumps({**LLAMA, "rope_scaling": {"factors": [1, 10**30]}}), "factors"),
        ('{"model_type": "llama", "model_type": "gpt2"}', "twice"),
        ("[" * 100_000, "nested too deeply"),
        (" " * 10_000_001, "more than 10000000 bytes"),
    ],
)
def test_configurations_that_lie_are_refused(
    text: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(text)
    assert expected in refusal(capsys, str(tmp_path / "config.json"))


def test_without_transformers_the_message_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "pip install transformers" in refusal(capsys, str(tmp_path))


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
@pytest.mark.parametrize("mode", ["infer", "decode", "train"])
def test_configurations_of_transformers(mode: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    words = [str(tmp_path), "--mode", mode, "--tokens", "256", "--batch", "2", "--quick"]
    out = run(capsys, *words, *(["--recompute"] if mode == "train" else []))
    layer = 2 * 512 * 512 + 2 * 512 * 256 + 3 * 512 * 1024 + 2 * 512
    assert out["parameters"] == 4 * layer + 2 * 4096 * 512 + 512
    assert out["parameter_bytes"] == (4 if mode == "train" else 2) * out["parameters"]
    assert out["rows"][0]["seconds"] > 0


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
def test_transformers_refuses_what_it_does_not_know(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | {"model_type": "abacus"}))
    assert "transformers refuses" in refusal(capsys, str(tmp_path))
