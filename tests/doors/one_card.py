"""Owner of one card: a script of transformers, whose model is larger than the card."""

import torch
import yours
from transformers import AutoModelForCausalLM

import tierpage.transformers

folder = yours.checkpoint()

tierpage.enable(nvme_path=yours.FOLDER, **yours.budgets())
with tierpage.transformers.file_backed():
    model = AutoModelForCausalLM.from_pretrained(folder, device_map=tierpage.config().device)
prompt = torch.arange(1, 9).reshape(1, -1).to(model.device)
yours.first_result(f"tokens {model.generate(prompt, max_new_tokens=4, do_sample=False)[0, 8:].tolist()}")

yours.has_moved()
