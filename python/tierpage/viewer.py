"""What lies in which tier, as a snapshot for torch's memory viewer.

The viewer (pytorch.org/memory_viz, ``python -m torch.cuda._memory_viz``) shows one device at a time, so each tier is a
device of its own. A region is a segment with one block in every tier in which it has bytes, at its own address, so
that it is found again in another tier. Which of its pages these bytes are is not known here.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tierpage import living, native
from tierpage.session import Session, current
from tierpage.settings import SETTINGS
from tierpage.system import format_bytes
from tierpage.trace import write_whole

__all__ = ["dump_snapshot", "memory_snapshot"]

PLACES = ("device", "host", "nvme", "checkpoint")  # the index is the number of the viewer's device
_PROTOCOL = 4  # the viewer reads no later one
_LOOKS_MOST = 5
_TENSORS_SHOWN = 4
_PROBES_MOST = 1 << 20  # addresses that are asked about; more than that of free ones among regions is no usual program
_PROBES_AT_ONCE = 4096


@dataclass(frozen=True)
class _Tensor:
    """What the frames of a block say about a tensor."""

    name: str
    kind: str  # type and shape


@dataclass(frozen=True)
class _Region:
    """A live region. ``places`` are the bytes in each of PLACES; without ``tensors``: only C++ holds one there."""

    address: int
    bytes: int
    pinned: bool
    places: dict[str, int]
    tensors: list[_Tensor]


@dataclass(frozen=True)
class _Totals:
    """Bytes by the statistics: in each tier, and those that live tensors asked for."""

    tiers: dict[str, int]
    live: int


def memory_snapshot() -> dict[str, Any]:
    """What lies where now, in the shape of ``torch.cuda.memory._snapshot()``, which torch's memory viewer reads.

    Devices 0 to 3 are the device tier, RAM, the NVMe tier, and the checkpoint files that :func:`load` uses in place.
    ``segments`` has one segment, with one block, for each paged tensor storage and each of these in which it has bytes:
    a storage with two copies is in two. The frames of a block are no stack; they name its tensors with type and shape
    (of those that no Python object holds, as of activations that autograd has saved, nothing is known), the storage,
    and the tier. One more segment of a tier, at address 0, is the rest of it: pages on their way, frames without a page,
    and tensors of the second kind that a long search has not found.

    Sizes are in bytes and count whole pages. Those of devices 1 and 2 add up to ``resident_bytes.*.current`` of
    :func:`memory_stats`, those of device 0 to ``resident_bytes.device.current`` and ``overflow_bytes.current``
    together. ``device_traces`` are empty: :func:`export_trace` has the time line. ``allocator_settings`` has the
    settings in force.

    Looks at every object that Python has, and moves nothing. While pages move it is no picture of one moment.

    Raises:
        TierpageError: tierpage is off.
    """
    session = current()
    regions, totals = _look(session)
    device = f"{session.config.device}:{session.config.device_index}"
    titles = dict(zip(PLACES, (f"device {device}", "RAM", "NVMe", "checkpoint file"), strict=True))
    segments: list[dict[str, Any]] = []
    for number, place in enumerate(PLACES):
        rest = totals.tiers.get(place, 0)
        for region in regions:
            size = region.places[place]
            if size > 0:
                segments.append(_segment(number, region.address, size, _frames(region, titles[place])))
                rest -= size
        if rest > 0:
            segments.append(_rest(number, rest, totals.live > sum(region.bytes for region in regions), titles[place]))
    return {
        "segments": segments,
        "device_traces": [[] for _ in PLACES],
        "allocator_settings": _settings(session, titles),
    }


def dump_snapshot(path: str | os.PathLike[str]) -> None:
    """Writes :func:`memory_snapshot` as a pickle, as ``torch.cuda.memory._dump_snapshot`` does.

    The file holds only numbers and texts, and appears complete or not at all.

    Raises:
        TierpageError: tierpage is off.
        OSError: the file cannot be written.
    """
    write_whole(path, pickle.dumps(memory_snapshot(), protocol=_PROTOCOL))


def _look(session: Session) -> tuple[list[_Region], _Totals]:
    """Regions and totals: of one moment, where the pages rest long enough for that."""
    regions: list[_Region] = []
    totals = _totals(session)
    for _ in range(_LOOKS_MOST):
        regions, before = list(_regions(session, totals.live)), totals
        totals = _totals(session)
        if totals == before:
            break
    return regions, totals


def _totals(session: Session) -> _Totals:
    with native.translated():
        stats = session.runtime.stats()
    tiers = {tier: int(stats[f"resident_bytes.{tier}.current"]) for tier in ("device", "host", "nvme")}
    tiers["device"] += int(stats["overflow_bytes.current"])
    return _Totals(tiers, int(stats["live_bytes.current"]))


def _regions(session: Session, live: int) -> Iterator[_Region]:
    """Each region once, by address. ``live``: bytes that live tensors asked for."""
    found: dict[int, list[tuple[bool, int, _Tensor]]] = {}
    with torch._C.DisableTorchFunctionSubclass():
        for tensor, name in living.named_tensors():
            for address in session.addresses([tensor]):
                kind = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
                shown = _Tensor(name or type(tensor).__name__, kind)
                found.setdefault(address, []).append((name is None, -tensor.numel(), shown))
    infos = {**_infos(session, sorted(found)), **dict(_walk(session, live))}
    inside: dict[int, list[tuple[bool, int, _Tensor]]] = {}
    begin = end = 0
    for address in sorted(infos):
        if address >= end:  # else: another storage over part of the region before
            begin, end = address, address + int(infos[address]["bytes"])
        inside.setdefault(begin, []).extend(found.get(address, ()))
    for address, rows in inside.items():
        info = infos[address]
        source = int(info["source"])
        places = {"device": int(info["device"]), "host": int(info["host"]), "nvme": int(info["nvme"]) - source}
        tensors = [tensor for _, _, tensor in sorted(rows, key=lambda row: row[:2])]  # named ones, large ones
        yield _Region(
            address, int(info["bytes"]), bool(info["pinned"]), {**places, "checkpoint": source},
            list(dict.fromkeys(tensors)),
        )  # fmt: skip


def _infos(session: Session, addresses: Sequence[int]) -> dict[int, dict[str, int]]:
    """What the engine knows of each address that lies in a live region."""
    with native.translated():
        infos = session.runtime.addresses_info(addresses)
    return {address: info for address, info in zip(addresses, infos, strict=True) if info}


def _walk(session: Session, live: int) -> Iterator[tuple[int, dict[str, int]]]:
    """Live regions by address, until they have ``live`` bytes together, or that takes too long.

    Regions begin at multiples of the granule. The engine places them close to the beginning of its range.
    """
    granule = int(session.config.in_force["granule_bytes"])
    address, last = session.range
    seen = probes = 0
    count = 1
    while seen < live and address < last and probes < _PROBES_MOST:
        asked = range(address, min(address + count * granule, last), granule)
        found = min(_infos(session, asked).items(), default=None, key=lambda row: row[0])
        probes += len(asked)
        if found is None:  # free addresses: look ahead in longer strides
            address, count = asked[-1] + granule, min(2 * count, _PROBES_AT_ONCE)
            continue
        yield found
        size = int(found[1]["bytes"])
        address, count = found[0] + -(-size // granule) * granule, 1
        seen += size


def _segment(
    number: int, address: int, size: int, frames: list[dict[str, Any]], *, active: bool = True
) -> dict[str, Any]:
    used = size if active else 0
    block = {
        "address": address,
        "size": size,
        "requested_size": size,
        "state": "active_allocated" if active else "inactive",
        "frames": frames,
    }
    return {
        "device": number,
        "address": address,
        "total_size": size,
        "allocated_size": used,
        "active_size": used,
        "requested_size": used,
        "stream": 0,
        "segment_type": "large",
        "segment_pool_id": (0, 0),
        "frames": frames,
        "blocks": [block],
    }


def _rest(number: int, size: int, live: bool, title: str) -> dict[str, Any]:
    """What is in a tier besides the regions. ``live``: some of it may be of live tensors."""
    what = "tensors that no Python object holds, " if live else ""  # they were not found in time
    frames = [_frame(f"{what}pages on their way, frames without a page", "the rest"), _frame(title, "tier")]
    return _segment(number, 0, size, frames, active=live)


def _frames(region: _Region, title: str) -> list[dict[str, Any]]:
    """What a block is, the most special first, as the innermost function of a stack would be."""
    frames = [_frame(tensor.name, tensor.kind) for tensor in region.tensors[:_TENSORS_SHOWN]]
    if not frames:
        frames.append(_frame("a tensor that no Python object holds", "type and shape unknown"))
    more = len(region.tensors) - _TENSORS_SHOWN
    if more > 0:
        frames.append(_frame(f"and {more} more tensors", "views"))
    storage = f"storage of {format_bytes(region.bytes)}"
    return [*frames, _frame(storage, "pinned" if region.pinned else "storage"), _frame(title, "tier")]


def _frame(what: str, kind: str) -> dict[str, Any]:
    """The viewer shows ``filename:line:name`` and has to have a line."""
    return {"filename": what, "line": 0, "name": kind}


def _settings(session: Session, titles: dict[str, str]) -> dict[str, Any]:
    """Numbers and texts only: the viewer unpickles nothing else."""
    settings: dict[str, Any] = {f"device {number}": titles[place] for number, place in enumerate(PLACES)}
    for name in SETTINGS:
        value = getattr(session.config, name)
        settings[name] = value if isinstance(value, bool | int | float | None) else str(value)
    return settings
