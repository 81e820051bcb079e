"""PyTorch's own databases of operators, modules and optimizers, plain against paged, bit for bit, in paranoid mode with pages of 4 KiB.

Every operator that runs on the device: its first samples in float32 and int64, forward; for the first of them the
gradients, and the in-place variant. Every module in training and evaluation, every optimizer with every flag. A shard is a process of its own; ``TIERPAGE_OPINFO_SHARD=i/n`` runs one of n shards
only, ``TIERPAGE_OPINFO_FULL=1`` all samples and more types, ``TIERPAGE_OPINFO_ONLY=regular expression`` some operators.
"""

from __future__ import annotations

import os

import pytest

import database_cases
import opinfo_worker

SHARDS = int(os.environ.get("TIERPAGE_OPINFO_SHARDS", "2"))
CHOSEN = os.environ.get("TIERPAGE_OPINFO_SHARD")
SHARD_LIST = [CHOSEN] if CHOSEN else [f"{index}/{SHARDS}" for index in range(SHARDS)]


@pytest.fixture(scope="module")
def outcomes(device: str) -> dict[str, opinfo_worker.Outcome]:
    """The shards at work side by side."""
    return opinfo_worker.run_shards(SHARD_LIST)


@pytest.mark.slow
@pytest.mark.parametrize("shard", SHARD_LIST)
def test_operators(outcomes: dict[str, opinfo_worker.Outcome], shard: str) -> None:
    outcome = outcomes[shard]
    print(outcome.summary())
    assert not outcome.failures, "\n".join(outcome.failures[:40])
    assert outcome.faults > 0, "nothing was paged: the test proves nothing"
    assert outcome.compared, "no operator was compared"


def test_exclusions_exist() -> None:
    """An exclusion that names no operator hides nothing and is to be removed."""
    names = {case.name for case in database_cases.all_cases()}
    assert set(database_cases.NOT_REPEATABLE) <= names
    assert set(database_cases.NOT_PAGED) <= names
