"""All programs of the shelf whose module can be imported here; a worker of the harness finds each by its name."""

from __future__ import annotations

from shelf_others import *  # noqa: F403
from shelf_science import *  # noqa: F403
from shelf_torch import *  # noqa: F403
from shelf_transformers import *  # noqa: F403
