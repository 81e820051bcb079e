"""Models that FSDP or DeepSpeed offload are recognised, once for each kind, with the option to delete.

DeepSpeed itself is none of the test libraries: a small stand-in has its names.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed

import harness
import tierpage
from offloaded_net import Net, told


@pytest.fixture
def enable(options: dict[str, Any]) -> Iterator[Callable[[], tierpage.Pager]]:
    """Here, since a warning names the line that enables."""
    yield lambda: tierpage.enable(**options)
    tierpage.disable()


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    backend = "nccl" if harness.DEVICE == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def fully_sharded(offload: bool = True) -> Net:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

    torch.manual_seed(1)
    model = Net()
    mesh = init_device_mesh(harness.DEVICE, (1,))
    policy = CPUOffloadPolicy(pin_memory=False) if offload else OffloadPolicy()
    for block in model.blocks:
        fully_shard(block, mesh=mesh, offload_policy=policy)
    fully_shard(model, mesh=mesh, offload_policy=policy)
    return model


def wrapped(offload: bool = True) -> Any:
    from torch.distributed.fsdp import CPUOffload, FullyShardedDataParallel
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    return FullyShardedDataParallel(
        Net(), cpu_offload=CPUOffload(offload_params=offload), auto_wrap_policy=ModuleWrapPolicy({torch.nn.Linear}),
        device_id=torch.device(harness.DEVICE, 0) if harness.DEVICE == "cuda" else torch.device("cpu"),
    )  # fmt: skip


@pytest.mark.usefixtures("group")
def test_fully_shard(enable: Callable[[], tierpage.Pager]) -> None:
    inputs = torch.ones(4, 64).to(harness.DEVICE)
    plain = fully_sharded()(inputs).detach().cpu()
    with enable():
        made: list[Net] = []
        (warning,) = told(lambda: made.append(fully_sharded()))
        text = str(warning.message)
        assert text.startswith(
            "Net.blocks.0 is moved in and out by FSDP (CPUOffloadPolicy), and so everything is moved"
        )
        assert "Delete offload_policy=CPUOffloadPolicy()" in text
        assert f"give the model its device: .to('{harness.DEVICE}" in text
        assert warning.filename == __file__
        assert torch.equal(made[0](inputs).detach().cpu(), plain)
        assert told(fully_sharded) == []


@pytest.mark.usefixtures("group")
def test_fully_sharded_data_parallel(enable: Callable[[], tierpage.Pager]) -> None:
    """Without a GPU such a model can be made, but not run."""
    with enable():
        (warning,) = told(wrapped)
        text = str(warning.message)
        assert text.startswith("Net is moved in and out by FSDP (CPUOffload), and so everything is moved twice")
        assert "Delete cpu_offload=CPUOffload(offload_params=True)" in text
        assert warning.filename == __file__


@pytest.mark.usefixtures("group")
def test_sharding_alone_is_not_told_of(enable: Callable[[], tierpage.Pager]) -> None:
    with enable():
        assert told(lambda: fully_sharded(offload=False)) == []
        assert told(lambda: wrapped(offload=False)) == []
    models = [fully_sharded(offload=False), wrapped(offload=False)]
    assert told(enable) == []
    del models


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize(("make", "kind"), [(fully_sharded, "CPUOffloadPolicy"), (wrapped, "CPUOffload")])
def test_sharded_models_from_before(enable: Callable[[], tierpage.Pager], make: Callable[[], Any], kind: str) -> None:
    model = make()
    (warning,) = told(enable)
    assert f" is moved in and out by FSDP ({kind}), " in str(warning.message)
    assert warning.filename == __file__
    del model


@pytest.mark.usefixtures("group")
def test_nothing_stays_behind(enable: Callable[[], tierpage.Pager]) -> None:
    fully_sharded()
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup

    before = FullyShardedDataParallel.__init__, FSDPParamGroup.__init__
    with enable():
        assert FullyShardedDataParallel.__init__ is not before[0]
        assert FSDPParamGroup.__init__ is not before[1]
        with pytest.raises(TypeError, match="module"):
            FullyShardedDataParallel()
    assert (FullyShardedDataParallel.__init__, FSDPParamGroup.__init__) == before


DEEPSPEED = {
    "__init__.py": """
        from deepspeed.runtime.engine import DeepSpeedEngine

        def initialize(model, config):
            return DeepSpeedEngine(model, config), None, None, None
        """,
    "runtime/__init__.py": "",
    "runtime/engine.py": """
        from enum import Enum
        from types import SimpleNamespace
        import torch

        class OffloadDeviceEnum(str, Enum):
            none, cpu, nvme = "none", "cpu", "nvme"

        class DeepSpeedEngine(torch.nn.Module):
            def __init__(self, model, config):
                super().__init__()
                zero = config.get("zero_optimization", {})
                parts = {}
                for name in ("offload_optimizer", "offload_param"):
                    part = zero.get(name)
                    parts[name] = part and SimpleNamespace(device=OffloadDeviceEnum(part["device"]))
                self._config = SimpleNamespace(zero_config=SimpleNamespace(**parts))
                self._configure_distributed_model(model)

            def _configure_distributed_model(self, model):
                self.module = model
        """,
}


@pytest.fixture
def deepspeed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], ModuleType]]:
    """Imports the stand-in, which is not imported yet."""
    for name, text in DEEPSPEED.items():
        file = tmp_path / "packages" / "deepspeed" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    assert "deepspeed" not in sys.modules

    def imported() -> ModuleType:
        import deepspeed

        return deepspeed

    yield imported
    for name in [name for name in sys.modules if name.split(".")[0] == "deepspeed"]:
        del sys.modules[name]


def zero(**parts: str | None) -> dict[str, Any]:
    return {"zero_optimization": {name: device and {"device": device} for name, device in parts.items()}}


@pytest.mark.parametrize(
    "config",
    [
        zero(offload_optimizer="cpu"),
        zero(offload_param="nvme"),
        zero(offload_optimizer="nvme", offload_param="none"),
    ],
)
def test_deepspeed(
    enable: Callable[[], tierpage.Pager], deepspeed: Callable[[], ModuleType], config: dict[str, Any]
) -> None:
    with enable():
        library = deepspeed()  # as under `tierpage run`: later than tierpage
        (warning,) = told(lambda: library.initialize(Net(), config))
        text = str(warning.message)
        assert text.startswith(
            "Net is moved in and out by DeepSpeed (DeepSpeedEngine), and so everything is moved twice"
        )
        assert text.endswith("Delete offload_optimizer and offload_param from its ZeRO configuration.")
        assert warning.filename == __file__
        assert told(lambda: library.initialize(Net(), config)) == []


def test_deepspeed_without_offload(enable: Callable[[], tierpage.Pager], deepspeed: Callable[[], ModuleType]) -> None:
    library = deepspeed()
    engines = []
    with enable():
        for config in ({}, zero(offload_optimizer=None), zero(offload_optimizer="none", offload_param="none")):
            assert told(lambda config=config: engines.append(library.initialize(Net(), config))) == []
    assert told(enable) == []


def test_deepspeed_from_before(enable: Callable[[], tierpage.Pager], deepspeed: Callable[[], ModuleType]) -> None:
    engine = deepspeed().initialize(Net(), zero(offload_param="cpu"))
    (warning,) = told(enable)
    assert " is moved in and out by DeepSpeed (DeepSpeedEngine), " in str(warning.message)
    assert warning.filename == __file__
    del engine
