"""Recorded programs under the production core on the modelled machine: rows of budgets, and the working set."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import Any

from tierpage import native
from tierpage._estimate.codes import budget_with_ring, ring_bytes, ring_refusal
from tierpage._estimate.deferral import FUSED, deferred
from tierpage._estimate.errors import EstimateError
from tierpage._estimate.machines import Drive, Machine
from tierpage._estimate.programs import Recording
from tierpage.errors import OutOfMemoryError, StorageFullError
from tierpage.settings import Config

__all__ = ["Budgets", "Replayer", "Row", "WorkingSet"]

GRANULE_BYTES = 2 << 20  # of CUDA: every region takes whole ones
_LOOPS = 6  # the trace is recorded, operators are timed and the plan is made anew in the first four
_STEADY_SHARE = 0.02  # steps that differ by no more than this are the same
_BUSY_SHARE = 0.8
_WORKING_SET_SHARE = 0.01  # how exactly it is found


@dataclass(frozen=True)
class Budgets:
    """Bytes of each tier."""

    device: int
    host: int
    nvme: int


@dataclass(frozen=True)
class Row:
    """A step of the steady state under given budgets. ``refusal``: why it does not run; the figures are 0 then.

    ``bound_seconds`` is the least time of any order of transfers (csrc/estimate/phase_bound.h). ``limit`` names what
    is busy for most of the step: "kernels", "link up", "link down", "drive", or "in turn" where none of them is.
    ``ring_bytes`` of the device budget are the coder's (docs/tuning.md, compress); 0: pages are not coded. Bytes that
    move are those of codes then, and ``saved_up_bytes`` and ``saved_down_bytes`` what they are less than their pages.
    """

    batch: int
    budgets: Budgets
    drive: Drive | None
    refusal: str = ""
    seconds: float = 0.0
    first_seconds: float = 0.0  # the first step, in which everything is seen for the first time
    steady: bool = True
    bound_seconds: float = 0.0
    compute_seconds: float = 0.0
    up_bytes: int = 0  # into the device in a step, from RAM and the drive
    down_bytes: int = 0
    drive_read_bytes: int = 0
    drive_write_bytes: int = 0
    ring_bytes: int = 0
    saved_up_bytes: int = 0
    saved_down_bytes: int = 0
    limit: str = "kernels"

    @property
    def moves(self) -> bool:
        """Whether bytes move in a step: else it all fits the device."""
        return bool(self.up_bytes or self.down_bytes or self.drive_read_bytes or self.drive_write_bytes)


@dataclass(frozen=True)
class WorkingSet:
    """The least device budget: ``operator_bytes`` are those of the largest operator, which must all be there at once,
    in whole pages; ``bytes`` is the least budget that ran in the replay, within one part in a hundred, and the coder's
    ring where there is one."""

    operator: str
    operator_bytes: int
    bytes: int


class Replayer:
    """Replays one recording on one machine. ``compress``: "auto", "off" or "on", as the setting."""

    def __init__(self, recording: Recording, machine: Machine, compress: str = "auto") -> None:
        self.recording, self.machine, self.compress = recording, machine, compress
        self.whole_bytes = alive_whole_bytes(recording.text)
        self._updates = _largest_update(recording.text)
        self._deferred = recording.text
        if self._updates:
            with contextlib.suppress(ValueError):  # a step that would not end as it began: then as it was recorded
                self._deferred = deferred(recording.text)

    def plenty(self) -> int:
        """RAM for all of it, and for gradients that wait for their update."""
        return 2 * self.whole_bytes + (1 << 30)

    def row(self, batch: int, budgets: Budgets, drive: Drive | None) -> Row:
        """The steady state under these budgets."""
        ring = ring_bytes(budgets.device, self.compress)
        if refusal := ring_refusal(budgets.device, self.compress):
            return Row(batch, budgets, drive, refusal=refusal)
        try:
            out = self._replay(replace(budgets, device=budgets.device - ring), drive, _LOOPS, ring > 0)
        except (OutOfMemoryError, StorageFullError) as error:
            return Row(batch, budgets, drive, refusal=str(error).partition("\n")[0])
        steps = out["steps"]
        last, before = steps[-1], steps[-2]
        seconds = last["seconds"]
        rates = self.machine.link_rates(drive)
        busy = {
            "kernels": last["compute_seconds"],
            "link up": last["to_device_busy_seconds"],
            "link down": last["to_host_busy_seconds"],
        }
        if drive is not None:
            busy["drive"] = (
                last["disk_read_bytes"] / rates["disk_read"] + last["disk_write_bytes"] / rates["disk_write"]
            )
        return Row(
            batch,
            budgets,
            drive,
            seconds=seconds,
            first_seconds=steps[0]["seconds"],
            steady=abs(seconds - before["seconds"]) <= _STEADY_SHARE * seconds,
            bound_seconds=out["bound_seconds"] / self.recording.loop_steps,
            compute_seconds=last["compute_seconds"],
            up_bytes=last["to_device_bytes"],
            down_bytes=last["to_host_bytes"],
            drive_read_bytes=last["disk_read_bytes"],
            drive_write_bytes=last["disk_write_bytes"],
            ring_bytes=ring,
            saved_up_bytes=last["saved_up_bytes"],
            saved_down_bytes=last["saved_down_bytes"],
            limit=_busiest(busy, seconds),
        )

    def working_set(self) -> WorkingSet:
        """Searches for the least device budget with which two steps run, RAM being plenty. Raises EstimateError.

        Coded or not, the same pages must be there at once: what the coder takes comes on top.
        """
        name, least = largest_operator(self.recording.text)
        host, plenty = self.plenty(), 2 * self.whole_bytes

        def runs(device: int) -> bool:
            try:
                self._replay(Budgets(device, host, 0), None, 1)
            except OutOfMemoryError:
                return False
            return True

        low, high = least - GRANULE_BYTES, least
        while not runs(high):
            if high > plenty:
                raise EstimateError("the program runs with no device budget: this is a defect in tierpage, report it.")
            low, high = high, high + max(GRANULE_BYTES, _whole_granules((high - least) * 2))
        while high - low > max(GRANULE_BYTES, high * _WORKING_SET_SHARE):
            middle = _whole_granules((low + high) // 2)
            low, high = (low, middle) if runs(middle) else (middle, high)
        return WorkingSet(name, least, budget_with_ring(high, self.compress))

    def _replay(self, budgets: Budgets, drive: Drive | None, loops: int, codes: bool = False) -> dict[str, Any]:
        # As csrc/torch/deferral.h: where an update is over more than the device holds, it runs parameter by parameter.
        text = self._deferred if self._updates > budgets.device else self.recording.text
        # With a disk tier the staging buffers are part of the RAM budget.
        staging = min(Config.staging_slot_bytes * Config.staging_slots, budgets.host // 4) if budgets.nvme else 0
        rates = self.machine.link_rates(drive)
        if codes:
            rates |= self.machine.code_rates(self.recording.code_ratio)
        with native.translated():
            return dict(
                native.engine_module().replay_program(
                    text, budgets.device, budgets.host - staging, budgets.nvme, rates, loops, self.compress == "on"
                )
            )


def _busiest(busy: dict[str, float], seconds: float) -> str:
    name = max(busy, key=lambda each: busy[each])
    return name if busy[name] >= _BUSY_SHARE * seconds else "in turn"


def _whole_granules(count: int) -> int:
    return -(-count // GRANULE_BYTES) * GRANULE_BYTES


def _sizes(text: str) -> Any:
    """(name, groups) of each operator with the groups of bytes that it needs at once; programs that tierpage made."""
    live: dict[int, int] = {}
    for line in text.splitlines()[1:]:
        kind, *words = line.split()
        if kind == "A":
            live[int(words[0])] = _whole_granules(int(words[1]))
        elif kind in ("O", "O*"):
            groups: list[set[int]] = [set()]
            for word in words[2:]:
                if word == ";":
                    groups.append(set())
                elif word[0] == "+":
                    number, size = map(int, word[1:].split(":"))
                    live[number] = _whole_granules(size)
                    groups[-1].add(number)
                else:
                    groups[-1].add(int(word[:-1]))
            yield words[0], [sum(live[number] for number in group) for group in groups]


def largest_operator(text: str) -> tuple[str, int]:
    """Name and bytes of the operator that needs most at once; of one over lists each index counts for itself."""
    name, most = "none", 0
    for operator, groups in _sizes(text):
        if max(groups) > most:
            name, most = operator, max(groups)
    return name, max(most, GRANULE_BYTES)


def alive_whole_bytes(text: str) -> int:
    """Bytes alive at most, in whole pages."""
    live: dict[str, int] = {}
    now = most = 0
    for line in text.splitlines()[1:]:
        kind, *words = line.split()
        fresh = [words] if kind == "A" else [word[1:].split(":") for word in words[2:] if word[0] == "+"]
        for number, size in fresh:
            live[number] = _whole_granules(int(size))
            now += live[number]
        most = max(most, now)
        if kind == "F":
            now -= live.pop(words[0])
    return most


def _largest_update(text: str) -> int:
    """Bytes of the largest fused optimizer step over lists; 0 without one."""
    return max((sum(groups) for name, groups in _sizes(text) if FUSED.fullmatch(name) and len(groups) > 1), default=0)
