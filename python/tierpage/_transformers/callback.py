"""``PagerCallback``: what a Trainer's logs say of the pager."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from tierpage import native
from tierpage.api import step
from tierpage.session import current_or_none

__all__ = ["PagerCallback"]

_LEVELS = {f"tierpage_{tier}_bytes": f"resident_bytes.{tier}.current" for tier in ("device", "host", "nvme")}
_TOTALS = {
    "tierpage_fetched_bytes": "link_bytes.to_device",
    "tierpage_written_back_bytes": "link_bytes.to_host",
    "tierpage_stalled_seconds": "stall_seconds.total",
}


class PagerCallback(TrainerCallback):  # type: ignore[misc]
    """Marks each step with :func:`tierpage.step` and adds to what the Trainer logs. Does nothing while tierpage is off.

    ``tierpage_device_bytes``, ``tierpage_host_bytes`` and ``tierpage_nvme_bytes`` are the bytes in each tier then.
    ``tierpage_fetched_bytes`` (into the device), ``tierpage_written_back_bytes`` (out of it) and
    ``tierpage_stalled_seconds`` (waits of all threads) are sums since the log before, or since training began.

    They come into ``state.log_history`` and to the callbacks after this one, the progress bar among them. Reporters
    that the Trainer makes from ``report_to`` stand before it.
    """

    def __init__(self) -> None:
        self._before: dict[str, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Sums begin here."""
        self._figures()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One optimizer step has ended."""
        step()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Adds the figures to ``logs``, and to the copy of it that the Trainer has just put into its history."""
        if logs is None:
            return
        figures = self._figures()
        history = state.log_history
        if history and logs.items() <= history[-1].items():
            history[-1].update(figures)
        logs.update(figures)

    def _figures(self) -> dict[str, float]:
        session = current_or_none()
        if session is None:
            self._before = {}
            return {}
        with native.translated():
            stats = session.runtime.stats()
        now = {name: stats[known] for name, known in _TOTALS.items()}
        # A pager that was enabled meanwhile counts from zero again.
        same = all(now[name] >= self._before.get(name, 0) for name in now)
        since = {name: value - self._before.get(name, 0) if same else value for name, value in now.items()}
        self._before = now
        return {name: stats[known] for name, known in _LEVELS.items()} | since
