"""What the tests of checkpoints share: models, files that the safetensors library writes, and comparisons of bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

import tierpage
from tierpage._checkpoint.files import DTYPES

MIB = 1024**2
# Of the format's dtypes, those that the installed safetensors library can read and write with torch.
KNOWN = [dtype for dtype in DTYPES.values() if dtype in set(safetensors.torch._TYPES.values())]


class Model(torch.nn.Module):
    """Layers of odd sizes, so that in a file nothing begins at an aligned place; a small buffer; a frozen half."""

    def __init__(self, layers: int = 6, width: int = 211, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(width, width, dtype=dtype) for _ in range(layers))
        self.norm = torch.nn.BatchNorm1d(width, dtype=dtype)
        for layer in list(self.layers)[::2]:
            layer.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, width) -> the same shape."""
        for layer in self.layers:
            x = torch.tanh(layer(x)) + x
        return self.norm(x)


def random_bits(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Any bits, NaNs included; for bool 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    count = torch.Size(shape).numel() * dtype.itemsize
    content = torch.randint(0, 2 if dtype == torch.bool else 256, (count,), dtype=torch.uint8, generator=generator)
    return content.view(dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)


def bits(tensor: torch.Tensor) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    """Everything that makes two tensors the same."""
    content = bytearray(tensor.numel() * tensor.element_size())
    if content:  # by operators: a raw pointer would keep its tensor on the device for a while
        flat = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
        torch.frombuffer(content, dtype=torch.uint8).copy_(flat)
    return tensor.dtype, tuple(tensor.shape), bytes(content)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    """Asserts equal names, dtypes, shapes and bits."""
    assert sorted(a) == sorted(b)
    for name in a:
        assert bits(a[name]) == bits(b[name]), name


def write_raw(path: Path, header: Any, content: bytes = b"", length: int | None = None) -> Path:
    """A file with that header (text, bytes or what becomes JSON), which may be wrong in any way."""
    text = header if isinstance(header, bytes) else (header if isinstance(header, str) else json.dumps(header)).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + content)
    return path


def read_count() -> int:
    """Bytes that were read from checkpoints for pages, since enable."""
    return int(tierpage.memory_stats()["fetch_bytes.source"])
