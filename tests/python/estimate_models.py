"""Factories and inputs that the tests of `tierpage estimate` name on its command line."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

WIDTH, LAYERS, WORDS = 1024, 8, 512
LAYER_BYTES = WIDTH * WIDTH * 4


class Tower(nn.Module):
    """An embedding, square layers in a ModuleList, and a head: (batch, tokens) -> (batch, tokens, words)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList(
            # Each of the functions saves its result for the backward pass.
            nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=False), nn.Tanh(), nn.Sigmoid(), nn.Tanh(), nn.Sigmoid())
            for _ in range(LAYERS)
        )
        self.head = nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)


class WithLoss(Tower):
    def forward(self, tokens: torch.Tensor) -> SimpleNamespace:
        logits = super().forward(tokens)
        return SimpleNamespace(logits=logits, loss=logits.float().square().mean())


class Picture(nn.Module):
    """Takes a picture and a scale; has no ModuleList."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(64, 512, 3, padding=1)
        self.second = nn.Conv2d(512, 512, 3, padding=1)

    def forward(self, picture: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.convolution(picture * scale)))


class Recurrent(nn.Module):
    """Its layer is one operator, of which torch counts no arithmetic."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.layer = nn.LSTM(WIDTH, WIDTH, batch_first=True)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.layer(self.embedding(tokens))[0]


class Encoder(nn.Module):
    """Made of copies of one layer, for which torch has a fast path of one operator."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 8, WIDTH, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.layers(self.embedding(tokens))


class Reads(nn.Module):
    """Its path depends on content, which fake tensors do not have."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.linear(tokens.float()) if tokens.sum().item() > 0 else self.linear.weight


class Hoards(Tower):
    """Keeps more with each step."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[torch.Tensor] = []

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        self.kept.append(super().forward(tokens))
        return self.kept[-1]


def picture_inputs(batch: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(batch, 64, 64, 64), torch.ones(1)


def named_inputs(batch: int, tokens: int) -> dict[str, torch.Tensor]:
    return {"picture": torch.zeros(batch, 64, 64, 64), "scale": torch.ones(1)}


def bad_inputs(batch: int, tokens: int) -> None:
    raise KeyError("no such input")


def frozen() -> nn.Module:
    return Tower().requires_grad_(False)


def adapted() -> nn.Module:
    """Frozen, but for the head."""
    model = Tower().requires_grad_(False)
    model.head.requires_grad_(True)
    return model


def fails() -> nn.Module:
    raise RuntimeError("needs a licence")


def not_a_module() -> str:
    return "a model"


not_callable = 7


def _llama(name: str) -> nn.Module:
    sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
    from llama_shape import SHAPES, Decoder

    return Decoder(SHAPES[name])


def llama_13b() -> nn.Module:
    """The model of bench/infer.py."""
    return _llama("13b")


def llama_3b() -> nn.Module:
    """The model of bench/train.py."""
    return _llama("3b")
