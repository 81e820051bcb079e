"""What stands for a person's own model, pipeline and data, and the clock of these programs.

Everything has random weights and is made here, in a folder that goes when the program ends. Budgets are small, so that
something has to move; a program of one's own leaves them out.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

FOLDER = Path(tempfile.mkdtemp(dir="/var/tmp"))  # on a local disk
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)


def seconds_since_start() -> float:
    """Of this process: imports count."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def first_result(what: object) -> None:
    print(f"{Path(sys.argv[0]).stem}: {what}, after {seconds_since_start():.1f} s")


def budgets() -> dict[str, str]:
    import torch

    if torch.cuda.is_available():
        return {"device_budget": "640MiB", "host_budget": "8GiB", "nvme_budget": "4GiB"}
    return {"device_budget": "16MiB", "host_budget": "512MiB", "nvme_budget": "256MiB"}


def has_moved() -> None:
    """The program is about memory beyond the device budget: pages must have left and come back."""
    import tierpage

    stats = tierpage.memory_stats()
    assert sum(stats[f"fetch_bytes.{link}"] for link in ("host_to_device", "nvme_to_host", "nvme_to_device")) > 0


def model() -> Any:
    import torch
    import transformers

    width = 2048 if torch.cuda.is_available() else 512
    torch.manual_seed(0)
    shape = transformers.LlamaConfig(
        hidden_size=width, intermediate_size=3 * width, num_hidden_layers=2, num_attention_heads=8, vocab_size=512,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(shape)


def checkpoint() -> Path:
    """A folder as ``save_pretrained`` leaves it."""
    model().save_pretrained(FOLDER / "model")
    return FOLDER / "model"


def pipeline() -> Path:
    """The folder of a diffusion pipeline without a text encoder."""
    import torch
    from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

    width = 512 if torch.cuda.is_available() else 128
    torch.manual_seed(0)
    denoiser = UNet2DModel(
        sample_size=16, layers_per_block=1, block_out_channels=(width, 2 * width),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    DDIMPipeline(denoiser, DDIMScheduler()).save_pretrained(FOLDER / "pipeline")
    return FOLDER / "pipeline"
