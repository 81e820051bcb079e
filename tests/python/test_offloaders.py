"""Models that accelerate or diffusers move are recognised, once for each kind of hook, with the call to delete.

test_offloaders_sharded.py has those of FSDP and DeepSpeed.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import harness
import tierpage
from offloaded_net import Net, told

accelerate = pytest.importorskip("accelerate")


@pytest.fixture
def enable(options: dict[str, Any]) -> Iterator[Callable[[], tierpage.Pager]]:
    """Here, since a warning names the line that enables."""
    yield lambda: tierpage.enable(**options)
    tierpage.disable()


def bits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.ones(4, 64).to(harness.DEVICE)).cpu()


def test_accelerate_cpu_offload(enable: Callable[[], tierpage.Pager]) -> None:
    torch.manual_seed(1)
    plain = bits(Net().to(harness.DEVICE))
    torch.manual_seed(1)
    with enable():
        model = Net()
        (warning,) = told(lambda: accelerate.cpu_offload(model, execution_device=harness.DEVICE))
        text = str(warning.message)
        assert text.startswith("Net.first is moved in and out by accelerate (AlignDevicesHook)")
        assert "Delete this call of cpu_offload" in text
        assert warning.filename == __file__
        assert told(lambda: accelerate.cpu_offload(Net(), execution_device=harness.DEVICE)) == []
        assert torch.equal(bits(model), plain)


def test_accelerate_disk_offload(enable: Callable[[], tierpage.Pager], tmp_path: Path) -> None:
    with enable():
        model = Net()
        (warning,) = told(lambda: accelerate.disk_offload(model, str(tmp_path), execution_device=harness.DEVICE))
        assert "Delete this call of disk_offload" in str(warning.message)


def test_accelerate_cpu_offload_with_hook(enable: Callable[[], tierpage.Pager]) -> None:
    with enable():
        (warning,) = told(lambda: accelerate.cpu_offload_with_hook(Net(), execution_device=harness.DEVICE))
        assert str(warning.message).startswith("Net is moved in and out by accelerate (CpuOffload)")
        assert "Delete this call of cpu_offload_with_hook" in str(warning.message)


def test_a_model_from_before(enable: Callable[[], tierpage.Pager]) -> None:
    model = accelerate.cpu_offload(Net(), execution_device=harness.DEVICE)
    (warning,) = told(enable)
    assert "Delete the call that asked for it (cpu_offload, disk_offload, " in str(warning.message)
    assert warning.filename == __file__
    del model


def test_a_warning_that_is_an_error_comes_each_time(enable: Callable[[], tierpage.Pager]) -> None:
    with enable(), warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            with pytest.raises(tierpage.TierpageWarning, match="is moved in and out by accelerate"):
                accelerate.cpu_offload(Net(), execution_device=harness.DEVICE)


def test_hooks_that_only_move_inputs_are_not_told_of(enable: Callable[[], tierpage.Pager]) -> None:
    hook = accelerate.hooks.AlignDevicesHook(execution_device=harness.DEVICE, io_same_device=True)
    with enable():
        model = Net().to(harness.DEVICE)
        assert told(lambda: accelerate.hooks.add_hook_to_module(model, hook)) == []
    assert told(lambda: enable()) == []


def test_nothing_stays_behind(enable: Callable[[], tierpage.Pager]) -> None:
    before = accelerate.hooks.AlignDevicesHook.__dict__["init_hook"]
    finders = list(sys.meta_path)
    with enable():
        assert accelerate.hooks.AlignDevicesHook.__dict__["init_hook"] is not before
    assert accelerate.hooks.AlignDevicesHook.__dict__["init_hook"] is before
    assert sys.meta_path == finders


def test_a_device_map_of_several_places(enable: Callable[[], tierpage.Pager], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, vocab_size=32
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    with enable():
        places = {"model.embed_tokens": harness.DEVICE, "model.norm": harness.DEVICE, "lm_head": harness.DEVICE}
        places |= {"model.rotary_emb": harness.DEVICE, "model.layers.0": harness.DEVICE, "model.layers.1": "disk"}
        load = transformers.LlamaForCausalLM.from_pretrained
        (warning,) = told(lambda: load(tmp_path / "model", device_map=places, offload_folder=str(tmp_path / "off")))
        assert "Delete the device_map, max_memory and offload_folder of this from_pretrained" in str(warning.message)
        assert warning.filename == __file__
        assert told(lambda: load(tmp_path / "model", device_map=harness.DEVICE)) == []


def unet() -> Any:
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=8, layers_per_block=1, block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip


def test_diffusers(enable: Callable[[], tierpage.Pager]) -> None:
    diffusers = pytest.importorskip("diffusers")
    with enable():
        device = torch.device(harness.DEVICE)
        kind = {"offload_type": "leaf_level", "use_stream": False}
        (warning,) = told(lambda: unet().enable_group_offload(device, torch.device("cpu"), **kind))
        text = str(warning.message)
        assert text.startswith("UNet2DModel")
        assert "moved in and out by diffusers (GroupOffloadingHook)" in text
        assert "Delete this call of enable_group_offload" in text
        pipeline = diffusers.DDIMPipeline(unet(), diffusers.DDIMScheduler())
        (warning,) = told(lambda: pipeline.enable_model_cpu_offload(device=harness.DEVICE))
        assert "Delete this call of enable_model_cpu_offload" in str(warning.message)
        other = diffusers.DDIMPipeline(unet(), diffusers.DDIMScheduler())
        (warning,) = told(lambda: other.enable_sequential_cpu_offload(device=harness.DEVICE))
        assert "Delete this call of enable_sequential_cpu_offload" in str(warning.message)
        assert warning.filename == __file__


def test_a_library_that_is_imported_later(tmp_path: Path) -> None:
    """As under ``tierpage run``, where the program imports everything after tierpage is on."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """\
            import torch
            from accelerate import cpu_offload
            model = torch.nn.Sequential(torch.nn.Linear(64, 64))
            cpu_offload(model, execution_device="cpu")
            """
        )
    )
    run = ["-m", "tierpage", "run", "--device", "cpu", "--device-budget", "8MiB", "--host-budget", "64MiB"]
    done = subprocess.run(
        [sys.executable, *run, str(script)], env=harness.child_environment(), capture_output=True, text=True, timeout=120
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "script.py:4: TierpageWarning: Sequential.0 is moved in and out by accelerate" in done.stderr
