"""Programs of transformers: every kind of cache, decoder, encoder, mixture, state space, Trainer, saving and loading."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from shelf import Values, program, repeated, stepped

from harness import Run

VOCABULARY = 512
WIDTH = 128
TINY: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 3 * WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def library() -> Any:
    """transformers, imported where a program begins: it may not be installed."""
    import transformers

    return transformers


def tokens(run: Run, *shape: int) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, shape).to(run.device)


def llama(run: Run, **changes: Any) -> Any:
    config = library().LlamaConfig(**(TINY | changes))
    return library().LlamaForCausalLM(config).to(run.device).eval()


def generated(run: Run, model: Any, prompt: torch.Tensor, assistant_model: Any = None, **settings: Any) -> Values:
    chosen = library().GenerationConfig(max_new_tokens=12, min_new_tokens=12, pad_token_id=0, **settings)
    return repeated(run, lambda: model.generate(prompt, generation_config=chosen, assistant_model=assistant_model))


def trained(run: Run, model: Any, batches: list[dict[str, torch.Tensor]], rate: float = 1e-3) -> Values:
    """A step of AdamW for each batch; the losses and all parameters."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    following = iter(batches)
    return stepped(run, model, optimizer, lambda: model(**next(following)).loss, len(batches))


def text_batches(run: Run, count: int = 3) -> list[dict[str, torch.Tensor]]:
    found = []
    for _ in range(count):
        ids = tokens(run, 2, 24)
        found.append({"input_ids": ids, "labels": ids})
    return found


def image_batches(run: Run, count: int) -> list[dict[str, torch.Tensor]]:
    return [
        {"pixel_values": torch.randn(4, 3, 32, 32).to(run.device), "labels": torch.randint(0, 10, (4,)).to(run.device)}
        for _ in range(count)
    ]


@program("transformers", "a key-value cache that grows by cat")
def generate_dynamic_cache(run: Run) -> Values:
    return generated(run, llama(run), tokens(run, 2, 9), do_sample=False)


@program("transformers", "a cache that is written in place at an index")
def generate_static_cache(run: Run) -> Values:
    return generated(run, llama(run), tokens(run, 2, 9), do_sample=False, cache_implementation="static")


@program("transformers", "random numbers of the device decide")
def generate_sampling(run: Run) -> Values:
    return generated(run, llama(run), tokens(run, 2, 9), do_sample=True, top_k=20, temperature=0.8)


@program("transformers", "caches that are reordered between steps")
def generate_beams(run: Run) -> Values:
    return generated(run, llama(run), tokens(run, 1, 9), do_sample=False, num_beams=3)


@program("transformers", "two models, one cache cut back")
def generate_assisted(run: Run) -> Values:
    helper, prompt = llama(run, num_hidden_layers=1), tokens(run, 1, 9)
    return generated(run, llama(run), prompt, assistant_model=helper, do_sample=False)


@program("transformers", "a window that slides over the cache")
def generate_sliding_window(run: Run) -> Values:
    config = library().MistralConfig(**(TINY | {"sliding_window": 6}))
    model = library().MistralForCausalLM(config).to(run.device).eval()
    return generated(run, model, tokens(run, 2, 9), do_sample=False)


@program("transformers", "an encoder whose output is used in every step")
def generate_encoder_decoder(run: Run) -> Values:
    config = library().T5Config(
        vocab_size=VOCABULARY, d_model=WIDTH, d_kv=32, d_ff=2 * WIDTH, num_layers=2, num_heads=4,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=2,
    )  # fmt: skip
    model = library().T5ForConditionalGeneration(config).to(run.device).eval()
    return generated(run, model, tokens(run, 2, 9), do_sample=False)


@program("transformers", "sound in, text out")
def generate_from_sound(run: Run) -> Values:
    config = library().WhisperConfig(
        vocab_size=VOCABULARY, d_model=WIDTH, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=256, decoder_ffn_dim=256, num_mel_bins=16, max_source_positions=40,
        max_target_positions=40, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    model = library().WhisperForConditionalGeneration(config).to(run.device).eval()
    sound = torch.randn(1, 16, 80).to(run.device)
    with torch.no_grad():
        out = model(sound, decoder_input_ids=tokens(run, 1, 6))
    run.between()
    return {"logits": out.logits, "encoder": out.encoder_last_hidden_state}


@program("transformers", "recurrence in place of attention")
def state_space(run: Run) -> Values:
    config = library().MambaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=2, state_size=8, pad_token_id=0, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    model = library().MambaForCausalLM(config).to(run.device)
    return trained(run, model, text_batches(run, 2))


@program("transformers", "training, as most scripts do it")
def train_decoder(run: Run) -> Values:
    return trained(run, llama(run).train(), text_batches(run))


@program("transformers", "activations are made again in the backward pass")
def train_with_recompute(run: Run) -> Values:
    model = llama(run).train()
    model.gradient_checkpointing_enable()
    return trained(run, model, text_batches(run))


@program("transformers", "weights in bf16, tied input and output")
def train_tied_bf16(run: Run) -> Values:
    model = llama(run, tie_word_embeddings=True).to(torch.bfloat16).train()
    return trained(run, model, text_batches(run))


@program("transformers", "a mixture of experts: which weights are used, data decides")
def train_mixture_of_experts(run: Run) -> Values:
    config = library().MixtralConfig(**(TINY | {"num_local_experts": 4, "num_experts_per_tok": 2}))
    model = library().MixtralForCausalLM(config).to(run.device).train()
    return trained(run, model, text_batches(run, 2))


@program("transformers", "masks, token types and dropout")
def train_encoder(run: Run) -> Values:
    config = library().BertConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=3, num_attention_heads=4, intermediate_size=384,
        max_position_embeddings=64,
    )  # fmt: skip
    return trained(run, library().BertForMaskedLM(config).to(run.device).train(), text_batches(run))


@program("transformers", "images through patches")
def train_image_classifier(run: Run) -> Values:
    config = library().ViTConfig(
        hidden_size=WIDTH, num_hidden_layers=3, num_attention_heads=4, intermediate_size=384, image_size=32, patch_size=8,
        num_labels=10,
    )  # fmt: skip
    model = library().ViTForImageClassification(config).to(run.device).train()
    return trained(run, model, image_batches(run, 3))


@program("transformers", "a folder with several files, written and read")
def save_and_load(run: Run) -> Values:
    model = llama(run)
    ids = tokens(run, 1, 8)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        before = model(ids).logits
        model.save_pretrained(folder, max_shard_size="400KB")
        run.between()
        again = library().AutoModelForCausalLM.from_pretrained(folder).to(run.device).eval()
        return {"before": before, "after": again(ids).logits, "parameters": dict(again.named_parameters())}


class Lines(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Sixteen lines of text, the same in every run."""

    def __init__(self) -> None:
        self.lines = torch.randint(3, VOCABULARY, (16, 24), generator=torch.Generator().manual_seed(7))

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.lines[index], "labels": self.lines[index]}


@program("transformers", "Trainer: steps, saves, and goes on from what it saved")
def trainer_resumes(run: Run) -> Values:
    with tempfile.TemporaryDirectory() as folder:
        arguments: dict[str, Any] = {
            "output_dir": folder, "per_device_train_batch_size": 4, "max_steps": 4, "save_steps": 2, "report_to": [],
            "disable_tqdm": True, "use_cpu": run.device == "cpu", "logging_steps": 1, "seed": 3,
        }  # fmt: skip
        model = llama(run).train()
        first = library().Trainer(model, library().TrainingArguments(**arguments), train_dataset=Lines())
        first.train()
        run.between()
        fresh = llama(run).train()
        second = library().Trainer(fresh, library().TrainingArguments(**arguments), train_dataset=Lines())
        second.train(resume_from_checkpoint=f"{folder}/checkpoint-2")
        losses = [row["loss"] for row in second.state.log_history if "loss" in row]
        return {"losses": losses, "once": dict(model.named_parameters()), "resumed": dict(fresh.named_parameters())}


@program("transformers", "two encoders and the products of all their pairs")
def train_contrastive(run: Run) -> Values:
    text = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 256, "num_hidden_layers": 2}
    image = {"hidden_size": WIDTH, "intermediate_size": 256, "num_hidden_layers": 2, "image_size": 32, "patch_size": 8}
    heads = {"num_attention_heads": 4}
    config = library().CLIPConfig(
        text_config=text | heads | {"max_position_embeddings": 32, "eos_token_id": 2},
        vision_config=image | heads,
        projection_dim=64,
    )
    model = library().CLIPModel(config).to(run.device).train()
    batches = [
        {"input_ids": tokens(run, 3, 12), "pixel_values": torch.randn(3, 3, 32, 32).to(run.device), "return_loss": True}
        for _ in range(2)
    ]
    return trained(run, model, batches)


@program("transformers", "convolutions over sound, alignments of unknown length")
def train_speech(run: Run) -> Values:
    config = library().Wav2Vec2Config(
        vocab_size=32, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        conv_dim=(32, 32), conv_kernel=(10, 3), conv_stride=(5, 2), num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4, mask_time_prob=0.0, layerdrop=0.0,
    )  # fmt: skip
    model = library().Wav2Vec2ForCTC(config).to(run.device).train()
    batches = [
        {"input_values": torch.randn(2, 800).to(run.device), "labels": torch.randint(1, 32, (2, 6)).to(run.device)}
        for _ in range(2)
    ]
    return trained(run, model, batches)


@program("transformers", "windows of an image that are shifted and joined")
def train_shifted_windows(run: Run) -> Values:
    config = library().SwinConfig(
        image_size=32, patch_size=4, embed_dim=32, depths=[2, 2], num_heads=[2, 4], window_size=4, num_labels=10
    )
    model = library().SwinForImageClassification(config).to(run.device).train()
    return trained(run, model, image_batches(run, 2))


@program("transformers", "a label for each pixel, interpolated")
def train_pixel_labels(run: Run) -> Values:
    config = library().SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[32, 64], num_attention_heads=[1, 2],
        patch_sizes=[7, 3], strides=[4, 2], mlp_ratios=[2, 2], decoder_hidden_size=64, num_labels=4,
    )  # fmt: skip
    model = library().SegformerForSemanticSegmentation(config).to(run.device).train()
    batches = [
        {
            "pixel_values": torch.randn(1, 3, 32, 32).to(run.device),
            "labels": torch.randint(0, 4, (1, 32, 32)).to(run.device),
        }
        for _ in range(2)
    ]
    return trained(run, model, batches)


@program("transformers", "keys and values out of one small latent, experts beside shared ones")
def generate_latent_attention(run: Run) -> Values:
    config = library().DeepseekV3Config(
        **(TINY | {"num_key_value_heads": 4}), moe_intermediate_size=64, n_routed_experts=8, n_shared_experts=1,
        num_experts_per_tok=2, n_group=2, topk_group=1, first_k_dense_replace=1, q_lora_rank=32, kv_lora_rank=32,
        qk_rope_head_dim=16, qk_nope_head_dim=16, v_head_dim=32,
    )  # fmt: skip
    model = library().DeepseekV3ForCausalLM(config).to(run.device).eval()
    return generated(run, model, tokens(run, 2, 9), do_sample=False)


@program("transformers", "layers that look near and layers that look far, each with its own cache")
def generate_near_and_far(run: Run) -> Values:
    config = library().Gemma3TextConfig(**TINY, head_dim=32, sliding_window=6, query_pre_attn_scalar=32)
    model = library().Gemma3ForCausalLM(config).to(run.device).eval()
    return generated(run, model, tokens(run, 2, 9), do_sample=False)


@program("transformers", "sixteen small experts and their balance in the loss")
def train_many_experts(run: Run) -> Values:
    config = library().Qwen2MoeConfig(
        **TINY, num_experts=16, num_experts_per_tok=4, moe_intermediate_size=64, shared_expert_intermediate_size=128,
        output_router_logits=True,
    )  # fmt: skip
    model = library().Qwen2MoeForCausalLM(config).to(run.device).train()
    return trained(run, model, text_batches(run, 2))


@program("transformers", "an optimizer whose state is rows and columns")
def train_adafactor(run: Run) -> Values:
    model = llama(run).train()
    optimizer = library().Adafactor(model.parameters(), lr=None, relative_step=True, warmup_init=True)
    following = iter(text_batches(run))
    return stepped(run, model, optimizer, lambda: model(**next(following)).loss, 3)
