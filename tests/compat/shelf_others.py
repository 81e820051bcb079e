"""Programs of the libraries around transformers: accelerate, peft, Lightning, diffusers, torchao."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from shelf import Values, program, repeated
from shelf_science import WIDTH, perceptron
from torch.nn import functional as F

from harness import Run


@program("accelerate", "prepared model, gradients of two batches, clipped norm")
def accelerate_loop(run: Run) -> Values:
    from accelerate import Accelerator

    accelerator = Accelerator(gradient_accumulation_steps=2, cpu=run.device == "cpu")
    data = torch.utils.data.TensorDataset(torch.randn(24, WIDTH))
    model = perceptron(run)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loader = torch.utils.data.DataLoader(data, batch_size=4)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    losses = []
    for (batch,) in loader:
        with accelerator.accumulate(model):
            loss = F.mse_loss(model(batch), batch)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.detach())
        run.between()
    return {"losses": losses, "parameters": dict(model.named_parameters())}


@program("accelerate", "state saved and loaded")
def accelerate_state(run: Run) -> Values:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=run.device == "cpu")
    model = perceptron(run)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model, optimizer = accelerator.prepare(model, optimizer)
    x = torch.randn(4, WIDTH).to(run.device)

    def step() -> None:
        F.mse_loss(model(x), x).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    with tempfile.TemporaryDirectory() as folder:
        accelerator.save_state(folder)
        step()
        run.between()
        accelerator.load_state(folder)
        step()
    return {"parameters": dict(model.named_parameters())}


@program("accelerate", "its own offloader of modules to RAM, hooks and all")
def accelerate_cpu_offload(run: Run) -> Values:
    from accelerate import cpu_offload

    model = perceptron(run).eval()
    cpu_offload(model, execution_device=torch.device(run.device))
    with torch.no_grad():
        return repeated(run, lambda: model(torch.randn(4, WIDTH).to(run.device)))


def adapted(run: Run, settings: Any) -> Values:
    from peft import get_peft_model
    from shelf_transformers import llama, text_batches, tokens, trained

    model = get_peft_model(llama(run).train(), settings)
    values = trained(run, model, text_batches(run))
    ids = tokens(run, 1, 8)
    with torch.no_grad():
        values["apart"] = model.eval()(ids).logits
        if hasattr(model, "merge_and_unload"):
            values["merged"] = model.merge_and_unload()(ids).logits
    return values


@program("peft", "LoRA: frozen weights, small matrices beside them, merged in the end")
def peft_lora(run: Run) -> Values:
    from peft import LoraConfig

    return adapted(run, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"], task_type="CAUSAL_LM"))


@program("peft", "DoRA: norms of the frozen weights in every step")
def peft_dora(run: Run) -> Values:
    from peft import LoraConfig

    return adapted(run, LoraConfig(r=4, use_dora=True, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))


@program("peft", "vectors that scale what frozen layers give")
def peft_scaled(run: Run) -> Values:
    from peft import IA3Config

    settings = IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
    return adapted(run, settings)


@program("lightning", "Trainer.fit with a checkpoint, and on from it")
def lightning_fit(run: Run) -> Values:
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = perceptron(run)

        def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
            return F.mse_loss(self.net(batch[0]), batch[0])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=1e-3)

    data = torch.utils.data.TensorDataset(torch.randn(24, WIDTH))
    loader = torch.utils.data.DataLoader(data, batch_size=4)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "devices": 1}
    quiet["accelerator"] = "cpu" if run.device == "cpu" else "gpu"
    with tempfile.TemporaryDirectory() as folder:
        module = Module()
        trainer = lightning.Trainer(max_epochs=1, default_root_dir=folder, **quiet)
        trainer.fit(module, loader)
        trainer.save_checkpoint(f"{folder}/one.ckpt")
        run.between()
        again = Module()
        lightning.Trainer(max_epochs=2, default_root_dir=folder, enable_checkpointing=False, **quiet).fit(
            again, loader, ckpt_path=f"{folder}/one.ckpt"
        )
    return {"once": dict(module.net.named_parameters()), "resumed": dict(again.net.named_parameters())}


@program("diffusers", "a convolutional denoiser with attention to text, six steps")
def diffusers_unet(run: Run) -> Values:
    from diffusers import DDIMScheduler, UNet2DConditionModel

    model = UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=(32, 64), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=64, attention_head_dim=8, norm_num_groups=8,
    ).to(run.device).eval()  # fmt: skip
    return denoised(run, model, DDIMScheduler(), torch.randn(1, 4, 16, 16), torch.randn(1, 7, 64))


def denoised(run: Run, model: Any, scheduler: Any, noise: torch.Tensor, text: torch.Tensor) -> Values:
    scheduler.set_timesteps(6)
    sample, text = noise.to(run.device), text.to(run.device)
    with torch.no_grad():
        for time in scheduler.timesteps:
            guess = model(sample, time.to(run.device), encoder_hidden_states=text).sample
            sample = scheduler.step(guess, time, sample).prev_sample
            run.between()
    return {"sample": sample}


@program("diffusers", "a transformer as the denoiser")
def diffusers_transformer(run: Run) -> Values:
    from diffusers import PixArtTransformer2DModel

    model = PixArtTransformer2DModel(
        num_attention_heads=4, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=3, sample_size=16,
        patch_size=2, cross_attention_dim=64, caption_channels=32, norm_num_groups=8, use_additional_conditions=False,
    ).to(run.device).eval()  # fmt: skip
    values = {}
    with torch.no_grad():
        for turn in range(3):
            time = torch.tensor([10 * turn]).to(run.device)
            noise, text = torch.randn(1, 4, 16, 16).to(run.device), torch.randn(1, 7, 32).to(run.device)
            added = {"resolution": None, "aspect_ratio": None}
            out = model(noise, encoder_hidden_states=text, timestep=time, added_cond_kwargs=added)
            values[f"turn_{turn}"] = out.sample
            run.between()
    return values


@program("diffusers", "an autoencoder, trained with an averaged copy")
def diffusers_autoencoder(run: Run) -> Values:
    from diffusers import AutoencoderKL
    from diffusers.training_utils import EMAModel

    model = AutoencoderKL(
        block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=8, sample_size=16,
    ).to(run.device)  # fmt: skip
    average = EMAModel(model.parameters())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    losses = []
    for _ in range(3):
        x = torch.randn(1, 3, 16, 16).to(run.device)
        loss = F.mse_loss(model(x).sample, x)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        average.step(model.parameters())
        losses.append(loss.detach())
        run.between()
    return {"losses": losses, "average": list(average.shadow_params)}


@program("torchao", "weights as 8-bit tensor subclasses")
def torchao_int8_weights(run: Run) -> Values:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = perceptron(run).eval()
    quantize_(model, Int8WeightOnlyConfig())
    with torch.no_grad():
        return repeated(run, lambda: model(torch.randn(4, WIDTH).to(run.device)))


@program("trl", "supervised fine-tuning of adapters, as its trainer does it")
def trl_sft(run: Run) -> Values:
    from datasets import Dataset
    from peft import LoraConfig
    from shelf_transformers import VOCABULARY, llama
    from trl import SFTConfig, SFTTrainer

    rows = torch.randint(3, VOCABULARY, (16, 20), generator=torch.Generator().manual_seed(7)).tolist()
    with tempfile.TemporaryDirectory() as folder:
        arguments: dict[str, Any] = {
            "output_dir": folder, "max_steps": 3, "per_device_train_batch_size": 4, "report_to": [], "logging_steps": 1,
            "disable_tqdm": True, "use_cpu": run.device == "cpu", "dataset_kwargs": {"skip_prepare_dataset": True},
            "bf16": False,
        }  # fmt: skip
        adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        trainer = SFTTrainer(
            llama(run).train(),
            args=SFTConfig(**arguments),
            train_dataset=Dataset.from_dict({"input_ids": rows}),
            peft_config=adapter,
            processing_class=tokenizer(),
        )
        trainer.train()
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        return {"losses": losses, "parameters": dict(trainer.model.named_parameters())}


def tokenizer() -> Any:
    """Words of one letter, made here: nothing is fetched from anywhere."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({"<pad>": 0, "<s>": 1, "</s>": 2, "a": 3}, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
