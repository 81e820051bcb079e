"""What the pages' blocks find: the names that a reader has by then, and files; and what must be true afterwards."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

import harness
import tierpage
from docs_pages import Block

WORDS = ["<unk>", "the", "largest", "river", "is", "deep", "</s>"]
Names = dict[str, Any]


class Absent(Exception):
    """A library is not installed."""


def need(*libraries: str) -> None:
    for library in libraries:
        if importlib.util.find_spec(library) is None:
            raise Absent(f"{library} is not installed")


def make_model() -> Any:
    import transformers

    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4, vocab_size=len(WORDS),
        bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def make_checkpoint(folder: Path) -> None:
    """A model of transformers with its tokenizer, once."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    if folder.exists():
        return
    made = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens = {"unk_token": "<unk>", "pad_token": "<unk>", "eos_token": "</s>"}
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, model_input_names=["input_ids", "attention_mask"], **tokens
    )
    fast.save_pretrained(folder)
    make_model().save_pretrained(folder)


def rows(count: int) -> list[dict[str, list[int]]]:
    ids = torch.randint(0, len(WORDS), (count, 12), generator=torch.Generator().manual_seed(1), device="cpu").tolist()
    return [{"input_ids": row, "labels": row} for row in ids]


def make_loader() -> Any:
    import transformers

    return torch.utils.data.DataLoader(rows(6), batch_size=2, collate_fn=transformers.default_data_collator)


def in_file(parameter: torch.Tensor) -> bool:
    place = tierpage.where(parameter)
    return 0 < place.bytes <= place.checkpoint


@contextmanager
def inference(names: Names, folder: Path) -> Iterator[None]:
    need("transformers", "accelerate")
    make_checkpoint(folder / "model")
    yield
    assert all(in_file(parameter) for parameter in names["model"].parameters())


@contextmanager
def trainer(names: Names, folder: Path) -> Iterator[None]:
    need("transformers", "accelerate")
    make_checkpoint(folder / "model")
    names["dataset"] = rows(16)
    yield
    assert names["trainer"].state.global_step == 4
    state = json.loads((folder / "run" / "checkpoint-4" / "trainer_state.json").read_text())
    assert "tierpage_fetched_bytes" in state["log_history"][0]


@contextmanager
def lora(names: Names, folder: Path) -> Iterator[None]:
    need("transformers", "accelerate", "peft")
    make_checkpoint(folder / "model")
    names["loader"] = [{name: value.to(harness.DEVICE) for name, value in batch.items()} for batch in make_loader()]
    yield
    parameters = list(names["model"].parameters())
    assert all(in_file(parameter) for parameter in parameters if not parameter.requires_grad)
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    assert any(bool(parameter.any()) for parameter in trained[1::2])  # the second matrix of an adapter begins as zero
    assert (folder / "adapter" / "adapter_model.safetensors").exists()


@contextmanager
def supervised(names: Names, folder: Path) -> Iterator[None]:
    need("transformers", "accelerate", "peft", "datasets", "trl")
    make_checkpoint(folder / "model")
    from datasets import Dataset

    names["dataset"] = Dataset.from_dict({"text": ["the largest river is deep"] * 16})
    yield
    assert names["trainer"].state.global_step == 4
    assert all(in_file(parameter) for parameter in names["model"].parameters() if not parameter.requires_grad)
    assert "tierpage_fetched_bytes" in names["trainer"].state.log_history[0]


@contextmanager
def lightning(names: Names, folder: Path) -> Iterator[None]:
    need("lightning", "transformers")
    names |= {"make_model": make_model, "loader": make_loader()}
    yield
    assert names["trainer"].global_step == 3
    assert all(tierpage.where(parameter).paged for parameter in names["module"].parameters())


@contextmanager
def diffusers(names: Names, folder: Path) -> Iterator[None]:
    need("diffusers", "accelerate", "PIL")
    from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

    denoiser = UNet2DModel(
        sample_size=8, layers_per_block=1, block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    DDIMPipeline(denoiser, DDIMScheduler()).save_pretrained(folder / "pipeline")
    yield
    assert all(in_file(parameter) for parameter in names["pipeline"].unet.parameters() if parameter.nbytes > 4096)
    assert (folder / "picture.png").exists()


@contextmanager
def accelerate(names: Names, folder: Path) -> Iterator[None]:
    need("transformers", "accelerate")
    names |= {"make_model": make_model, "loader": make_loader()}
    yield
    assert all(tierpage.where(parameter).paged for parameter in names["model"].parameters())
    assert (folder / "run" / "model.safetensors").exists()
    names["accelerator"].load_state(str(folder / "run"))


@contextmanager
def checkpoints(names: Names, folder: Path) -> Iterator[None]:
    from functools import partial

    torch.manual_seed(3)
    written = torch.nn.Linear(64, 64)
    tierpage.save(written, "model.safetensors")
    names |= {
        "Model": partial(torch.nn.Linear, 64),
        "config": 64,
        "x": torch.ones(2, 64).to(harness.DEVICE),
        "tierpage": tierpage,
    }
    yield
    assert torch.equal(names["model"].weight.cpu(), written.weight)
    assert Path("tuned.safetensors").exists()


@contextmanager
def snapshot(names: Names, folder: Path) -> Iterator[None]:
    tierpage.enable(folder / "scratch")
    names["tierpage"] = tierpage
    yield
    assert Path("snapshot.pickle").exists()


STAGES: dict[tuple[str, str], Callable[[Names, Path], AbstractContextManager[None]]] = {
    ("docs/recipes.md", "Inference with transformers"): inference,
    ("docs/recipes.md", "Fine-tuning with Trainer"): trainer,
    ("docs/recipes.md", "LoRA with PEFT"): lora,
    ("docs/recipes.md", "Supervised fine-tuning with TRL"): supervised,
    ("docs/recipes.md", "Lightning"): lightning,
    ("docs/recipes.md", "Images with diffusers"): diffusers,
    ("docs/recipes.md", "A loop of your own with accelerate"): accelerate,
    ("docs/checkpoints.md", "Checkpoints as memory"): checkpoints,
    ("docs/tuning.md", "A picture in torch's memory viewer"): snapshot,
}


def stage(block: Block, names: Names, folder: Path) -> AbstractContextManager[None]:
    """Around one block; a page's block without a stage of its own finds torch alone."""
    names["torch"] = torch
    made = STAGES.get((block.page, block.heading))
    return nullcontext() if made is None else made(names, folder)
