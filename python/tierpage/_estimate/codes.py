"""What coded pages (docs/page-format.md) do to an estimate: how long a code is, and the memory that the coder takes."""

from __future__ import annotations

from collections.abc import Iterable

import torch

__all__ = ["budget_with_ring", "code_ratio", "ring_bytes", "ring_refusal"]

# Bytes of a code by those of its page, for weights and states (docs/decisions/054-page-code.md). What is not here has
# the same length coded: integers, quantized weights.
_RATIOS = {torch.bfloat16: 0.70, torch.float16: 0.89, torch.float32: 0.85}

# As csrc/engine/tier_set.cpp takes its ring: of CUDA's largest pages nine tenths, in multiples of 4 KiB.
_CODE_BYTES_MAX = -(-((32 << 20) // 10 * 9) // 4096) * 4096
_PLACES, _PLACES_MIN = 6, 3
_BUDGET_SHARES = {"auto": 32, "on": 2}


def code_ratio(parts: Iterable[tuple[torch.dtype, int]]) -> float:
    """Bytes of all codes by those of all (dtype, bytes); 1 without any."""
    coded = whole = 0.0
    for dtype, count in parts:
        coded += _RATIOS.get(dtype, 1.0) * count
        whole += count
    return coded / whole if whole else 1.0


def ring_bytes(device_budget: int, compress: str) -> int:
    """What the coder takes of a device budget in bytes; 0: nothing is coded. ``compress``: "auto", "off" or "on"."""
    most = device_budget // _BUDGET_SHARES[compress] if compress in _BUDGET_SHARES else 0
    wanted = (_PLACES if most >= _PLACES * _CODE_BYTES_MAX else _PLACES_MIN) * _CODE_BYTES_MAX
    return wanted if wanted <= most else 0


def ring_refusal(device_budget: int, compress: str) -> str:
    """Why the program cannot begin with this budget in bytes; empty if it can."""
    if compress != "on" or ring_bytes(device_budget, compress):
        return ""
    least = _PLACES_MIN * _CODE_BYTES_MAX
    return (
        f'compress="on" needs {least} bytes beside the pages, which is much of a device_budget of {device_budget} bytes'
    )


def budget_with_ring(pages_bytes: int, compress: str) -> int:
    """The least device budget that leaves so many bytes to pages."""
    if compress not in _BUDGET_SHARES:
        return pages_bytes
    found = []
    for ring in (0, _PLACES_MIN * _CODE_BYTES_MAX, _PLACES * _CODE_BYTES_MAX):
        budget = max(pages_bytes + ring, ring * _BUDGET_SHARES[compress])
        if budget - ring_bytes(budget, compress) >= pages_bytes and not ring_refusal(budget, compress):
            found.append(budget)
    return min(found)
