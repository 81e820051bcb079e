"""The demo's model and text: a byte-level GPT, and the sources of Python's standard library as one byte string."""

from __future__ import annotations

import math
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

VOCABULARY = 256
BYTES_PER_PARAMETER = 16  # float32 parameter, gradient and two AdamW moments


@dataclass(frozen=True)
class Shape:
    """Layers, width, heads and context length of the model."""

    layers: int
    width: int
    heads: int
    context: int

    def parameters(self) -> int:
        """Number of parameters of :class:`ByteGpt` with this shape."""
        block = 12 * self.width**2 + 13 * self.width
        return self.layers * block + (2 * VOCABULARY + self.context + 2) * self.width

    def state_bytes(self) -> int:
        """Bytes of parameters, gradients and AdamW states."""
        return BYTES_PER_PARAMETER * self.parameters()

    def largest_parameter_bytes(self) -> int:
        """Bytes of the largest parameter: the width of one operator's working set."""
        return 4 * 4 * self.width**2


def shape_for(state_bytes: int, context: int = 128) -> Shape:
    """The smallest model of usual proportions whose states have at least ``state_bytes`` bytes."""
    wanted = state_bytes / BYTES_PER_PARAMETER
    layers = min(64, max(4, round((wanted / 12 / 6400) ** (1 / 3))))
    width = max(64, 64 * math.floor(math.sqrt(wanted / 12 / layers) / 64))
    while True:
        shape = Shape(layers, width, width // 64, context)
        if shape.state_bytes() >= state_bytes:
            return shape
        if layers < 64 and Shape(layers + 4, width, width // 64, context).state_bytes() >= state_bytes:
            layers += 1
        else:
            width += 64


class Block(nn.Module):
    """Pre-norm attention and a feed-forward layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.norm_attention = nn.LayerNorm(shape.width)
        self.qkv = nn.Linear(shape.width, 3 * shape.width)
        self.out = nn.Linear(shape.width, shape.width)
        self.norm_feed = nn.LayerNorm(shape.width)
        self.up = nn.Linear(shape.width, 4 * shape.width)
        self.down = nn.Linear(4 * shape.width, shape.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.norm_attention(x)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        fed: torch.Tensor = self.down(functional.gelu(self.up(self.norm_feed(x))))
        return x + fed


class ByteGpt(nn.Module):
    """Predicts the next byte of a text."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.token = nn.Embedding(VOCABULARY, shape.width)
        self.position = nn.Embedding(shape.context, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, VOCABULARY, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.token(tokens) + self.position.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits: torch.Tensor = self.head(self.norm(x))
        return logits


def corpus(bytes_max: int = 8 << 20) -> bytes:
    """Sources of this Python's standard library, in order of name, at most ``bytes_max`` bytes.

    Raises FileNotFoundError where the library comes without sources.
    """
    folder = Path(sysconfig.get_paths()["stdlib"])
    parts: list[bytes] = []
    size = 0
    for path in sorted(folder.glob("*.py")):
        text = path.read_bytes()
        parts.append(text)
        size += len(text)
        if size >= bytes_max:
            break
    if size < 100_000:
        raise FileNotFoundError(f"{folder} holds {size} bytes of Python sources; the demo needs 100000")
    return b"".join(parts)[:bytes_max]


def batches(text: bytes, steps: int, batch: int, context: int, seed: int) -> list[torch.Tensor]:
    """One (batch, context + 1) tensor of byte values per step, drawn at random places of the text."""
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    generator = torch.Generator().manual_seed(seed)
    result = []
    for _ in range(steps):
        starts = torch.randint(0, len(data) - context - 1, (batch,), generator=generator)
        result.append(torch.stack([data[start : start + context + 1] for start in starts.tolist()]).long())
    return result


@torch.no_grad()
def write_text(model: ByteGpt, device: str, prompt: bytes, count: int, seed: int) -> bytes:
    """``count`` bytes that the model writes after ``prompt``."""
    generator = torch.Generator().manual_seed(seed)
    tokens = list(prompt)
    for _ in range(count):
        window = torch.tensor([tokens[-model.shape.context :]], device=device)
        weights = torch.softmax(model(window)[0, -1].float().cpu() / 0.8, dim=0)
        tokens.append(int(torch.multinomial(weights, 1, generator=generator)))
    return bytes(tokens[len(prompt) :])
