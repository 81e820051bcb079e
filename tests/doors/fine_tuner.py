"""Fine-tuner: a script with a Trainer, whose weights, gradients and optimizer states do not fit."""

import torch
import yours
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import tierpage.transformers

folder = yours.checkpoint()
tokens = torch.randint(0, 512, (8, 16), generator=torch.Generator().manual_seed(0))
dataset = [{"input_ids": row, "labels": row} for row in tokens]

tierpage.enable(nvme_path=yours.FOLDER, **yours.budgets())
with tierpage.transformers.file_backed():
    model = AutoModelForCausalLM.from_pretrained(folder, device_map=tierpage.config().device)
arguments = TrainingArguments(
    str(yours.FOLDER / "run"), max_steps=2, per_device_train_batch_size=4, logging_steps=1, save_strategy="no",
    report_to="none", disable_tqdm=True, dataloader_pin_memory=False,
)  # fmt: skip
trainer = Trainer(model, arguments, train_dataset=dataset, callbacks=[tierpage.transformers.PagerCallback()])
trainer.train()
first = trainer.state.log_history[0]
yours.first_result(f"loss {float(first['loss']):.3f}, {first['tierpage_fetched_bytes'] >> 20} MiB fetched in a step")

yours.has_moved()
