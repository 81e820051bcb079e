"""Tools that look for the largest batch that fits: with ``overflow="off"`` they find what the budget allows."""

from __future__ import annotations

import gc
import importlib.util
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import harness
import tierpage

CUDA = harness.DEVICE != "cpu"
ROW = 4 * harness.MIB if CUDA else 16384  # bytes of one example: whole pages
FITS = 50  # examples whose largest operator is as large as the budget
TENSORS = 3  # of the largest operator, the backward of relu: gradient, result and what it makes
FIRST = 128


def need(*libraries: str) -> Any:
    missing = [name for name in libraries if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} is not installed")


@pytest.fixture
def tight(options: dict[str, Any]) -> dict[str, Any]:
    # On a GPU torch's own memory counts as well: that of a few small tensors.
    own = 64 * harness.MIB if CUDA else 0
    return {**options, "device_budget": TENSORS * FITS * ROW + own, "host_budget": 12 * FIRST * ROW}


@pytest.fixture
def off(tight: dict[str, Any]) -> Iterator[None]:
    with tierpage.enable(**{**tight, "overflow": "off"}):
        yield


def train(batch: int) -> None:
    x = torch.ones(batch, ROW // 4, device=harness.DEVICE, requires_grad=True)
    x.relu().square().sum().backward()
    assert x.grad is not None
    assert float(x.grad[-1, -1]) == 2


def observed(work: Callable[[int], None]) -> tuple[Callable[[int], int], list[BaseException]]:
    """`work`, which returns its batch size then, and the errors that it raised."""
    errors: list[BaseException] = []

    def run(batch_size: int) -> int:
        try:
            work(batch_size)
        except BaseException as error:
            errors.append(error.with_traceback(None))
            raise
        return batch_size

    return run, errors


def tried_by_accelerate() -> list[int]:
    sizes = [FIRST]
    while sizes[-1] > 1:
        sizes.append(int(sizes[-1] * 0.9))
    return sizes


@need("accelerate")
def test_accelerate_finds_what_the_budget_allows(off: None) -> None:
    from accelerate.utils import find_executable_batch_size
    from accelerate.utils.memory import should_reduce_batch_size

    before = tierpage.memory_stats()["live_bytes.current"]
    run, errors = observed(train)
    found = find_executable_batch_size(run, starting_batch_size=FIRST)()
    assert found == next(size for size in tried_by_accelerate() if size <= FITS)
    assert len(errors) == tried_by_accelerate().index(found)
    for error in errors:
        assert isinstance(error, torch.OutOfMemoryError)
        assert should_reduce_batch_size(error)  # type: ignore[arg-type]
    assert tierpage.memory_stats()["num_ooms"] == len(errors)
    gc.collect()
    assert tierpage.memory_stats()["live_bytes.current"] == before, "what did not fit is kept"


@need("accelerate")
def test_accelerate_takes_the_first_where_ram_helps(tight: dict[str, Any]) -> None:
    from accelerate.utils import find_executable_batch_size

    with tierpage.enable(**tight):
        run, errors = observed(train)
        assert find_executable_batch_size(run, starting_batch_size=FIRST)() == FIRST
        assert not errors
        assert tierpage.memory_stats()["overflows.count"] > 0


def lightning_finds(mode: str, folder: Path, first: int) -> tuple[int, list[BaseException]]:
    import lightning
    from lightning.pytorch.tuner import Tuner

    errors: list[BaseException] = []

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))
            self.batch_size = first

        def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
            run, failed = observed(train)
            try:
                run(len(batch[0]))
            finally:
                errors.extend(failed)
            return (self.weight * batch[0]).sum()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

        def train_dataloader(self) -> torch.utils.data.DataLoader:
            data = torch.utils.data.TensorDataset(torch.ones(1024, 1))
            return torch.utils.data.DataLoader(data, batch_size=self.batch_size)

    for name in ("lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    trainer = lightning.Trainer(
        max_epochs=1, default_root_dir=folder, enable_progress_bar=False, enable_model_summary=False, logger=False,
        devices=1, accelerator="gpu" if CUDA else "cpu",
    )  # fmt: skip
    found = Tuner(trainer).scale_batch_size(Module(), mode=mode, init_val=first, max_trials=12, steps_per_trial=1)
    assert found is not None
    return found, errors


@need("lightning")
@pytest.mark.filterwarnings("ignore")  # Lightning's own about loaders and devices
@pytest.mark.parametrize(("mode", "most"), [("power", 32), ("binsearch", FITS * 95 // 100)])
def test_lightning_finds_what_the_budget_allows(mode: str, most: int, off: None, tmp_path: Path) -> None:
    """It doubles, or halves what is left between; of what that finds it takes 95 % by itself."""
    found, errors = lightning_finds(mode, tmp_path, 4)
    assert found == most
    assert errors
    assert all(isinstance(error, torch.OutOfMemoryError) for error in errors)
