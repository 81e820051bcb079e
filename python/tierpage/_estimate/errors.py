"""What ends an estimate before it has an answer."""

from __future__ import annotations

from tierpage.errors import TierpageError

__all__ = ["EstimateError"]


class EstimateError(TierpageError):
    """Something that was given cannot be estimated; the text says what, and what to do."""
