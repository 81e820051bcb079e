"""Whole programs that are run plain and paged: models, optimizers, and the corners of PyTorch's interface.

Each takes a `harness.Run` and returns what must be equal bit for bit. `run.between()` stands between two steps: there the
paged run uses other memory, so that what the program holds has to leave and come back. Every operator stays below 1 MiB.
"""

from __future__ import annotations

from models_base import NAMES
from models_modes import *  # noqa: F403
from models_operators import *  # noqa: F403
from models_training import *  # noqa: F403

__all__ = ["NAMES"]
