"""User of diffusers: a pipeline whose denoiser is larger than the card."""

import torch
import yours
from diffusers import DiffusionPipeline

import tierpage

folder = yours.pipeline()

tierpage.enable(nvme_path=yours.FOLDER, **yours.budgets())
pipeline = DiffusionPipeline.from_pretrained(folder)
for name, part in pipeline.components.items():
    if isinstance(part, torch.nn.Module):
        tierpage.load(part, folder / name)
pipeline.to(tierpage.config().device)
pipeline.set_progress_bar_config(disable=True)
picture = pipeline(num_inference_steps=2).images[0]
yours.first_result(f"a picture of {picture.width} x {picture.height}")

yours.has_moved()
