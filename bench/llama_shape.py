"""A decoder of Llama's shape in plain PyTorch: the model of bench/infer.py and bench/train.py. Random weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional


@dataclass(frozen=True)
class Shape:
    """Sizes of the decoder; ``parameters()`` counts its weights."""

    dim: int
    layers: int
    heads: int
    hidden: int
    vocabulary: int

    def parameters(self) -> int:
        """Number of weights, embedding and head included."""
        layer = 4 * self.dim * self.dim + 3 * self.dim * self.hidden + 2 * self.dim
        return self.layers * layer + 2 * self.vocabulary * self.dim + self.dim


SHAPES = {
    "13b": Shape(5120, 40, 40, 13824, 32000),
    "3b": Shape(3072, 26, 24, 8192, 32000),
    "tiny": Shape(256, 4, 4, 688, 1024),
}


class Norm(nn.Module):
    """Root mean square normalisation."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (..., dim) -> the same shape."""
        if torch.are_deterministic_algorithms_enabled():
            # The fused kernel's weight gradient does not repeat itself bit for bit on CUDA (seen with torch 2.11).
            scale = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-5)
            return (x.float() * scale).to(x.dtype) * self.weight.to(x.dtype)
        return functional.rms_norm(x, self.weight.shape, self.weight, 1e-5)


def rotate(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding; x: (batch, heads, tokens, head_dim)."""
    left, right = x.chunk(2, dim=-1)
    return x * cosine + torch.cat((-right, left), dim=-1) * sine


class Layer(nn.Module):
    """Attention and gated feed-forward, both residual."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.norm1, self.norm2 = Norm(shape.dim), Norm(shape.dim)
        self.query = nn.Linear(shape.dim, shape.dim, bias=False)
        self.key = nn.Linear(shape.dim, shape.dim, bias=False)
        self.value = nn.Linear(shape.dim, shape.dim, bias=False)
        self.out = nn.Linear(shape.dim, shape.dim, bias=False)
        self.gate = nn.Linear(shape.dim, shape.hidden, bias=False)
        self.up = nn.Linear(shape.dim, shape.hidden, bias=False)
        self.down = nn.Linear(shape.hidden, shape.dim, bias=False)

    def forward(self, x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
        """x: (batch, tokens, dim) -> the same shape."""
        batch, tokens, dim = x.shape
        y = self.norm1(x)
        q, k, v = (
            linear(y).view(batch, tokens, self.heads, -1).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        q, k = rotate(q, cosine, sine), rotate(k, cosine, sine)
        attention = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attention.transpose(1, 2).reshape(batch, tokens, dim))
        y = self.norm2(x)
        return x + self.down(functional.silu(self.gate(y)) * self.up(y))


class Decoder(nn.Module):
    """Embedding, layers, head. ``recompute`` checkpoints every layer."""

    def __init__(self, shape: Shape, recompute: bool = False) -> None:
        super().__init__()
        self.shape, self.recompute = shape, recompute
        self.embedding = nn.Embedding(shape.vocabulary, shape.dim)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = Norm(shape.dim)
        self.head = nn.Linear(shape.dim, shape.vocabulary, bias=False)

    def angles(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine of each position's rotation. x: (batch, length, dim)."""
        half = self.shape.dim // self.shape.heads // 2
        frequency = 10000.0 ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
        angle = torch.arange(x.shape[1], device=x.device, dtype=torch.float32)[:, None] * frequency
        angle = torch.cat((angle, angle), dim=-1)
        return angle.cos().to(x.dtype), angle.sin().to(x.dtype)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens: (batch, length) of int64 -> logits (batch, length, vocabulary)."""
        x = self.embedding(tokens)
        cosine, sine = self.angles(x)
        for layer in self.layers:
            if self.recompute and torch.is_grad_enabled():
                x = torch.utils.checkpoint.checkpoint(layer, x, cosine, sine, use_reentrant=False)
            else:
                x = layer(x, cosine, sine)
        return self.head(self.norm(x))


def build(
    shape: Shape, device: str, dtype: torch.dtype, seed: int = 0, recompute: bool = False, home: str | None = None
) -> Decoder:
    """Makes the model with random weights, layer by layer, so that no more than one float32 layer is temporary.

    The weights depend on ``seed`` and on the kind of device that draws them, each tensor from its own generator.
    ``home``: where they are kept after that, when it is not ``device``.
    """
    with torch.device("meta"):
        model = Decoder(shape, recompute)
    for index, (name, parameter) in enumerate(list(model.named_parameters())):
        owner_name, _, leaf = name.rpartition(".")
        owner = model.get_submodule(owner_name)
        if parameter.dim() == 1:
            value = torch.ones(parameter.shape, device=device, dtype=dtype)
        else:
            generator = torch.Generator(device=device).manual_seed(seed * 100_003 + index)
            value = torch.empty(parameter.shape, device=device, dtype=dtype)
            value.normal_(0.0, 0.02, generator=generator)
        setattr(owner, leaf, nn.Parameter(value if home is None else value.to(home)))
    return model
