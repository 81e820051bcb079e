"""Models, training loops and helpers that the programs of models.py share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from harness import Run

WIDTH = 96
Values = dict[str, Any]
NAMES: list[str] = []


def program(function: Callable[[Run], Values]) -> Callable[[Run], Values]:
    """Puts a function on the list of programs."""
    NAMES.append(function.__name__)
    return function


class Attention(nn.Module):
    def __init__(self, width: int, heads: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.inner, self.outer = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = self.inner(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        rate = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=rate)
        return self.outer(y.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    def __init__(self, width: int = WIDTH, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, dropout=dropout)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    def __init__(
        self,
        vocabulary: int = 256,
        width: int = WIDTH,
        layers: int = 2,
        dropout: float = 0.0,
        checkpointing: bool | None = None,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.places = nn.Parameter(torch.randn(64, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, dropout) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embedding.weight  # tied
        self.checkpointing = checkpointing  # None: no; else use_reentrant

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens) + self.places[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x) if self.checkpointing is None else checkpoint(block, x, use_reentrant=self.checkpointing)
        return self.head(self.norm(x))

    def loss(self, tokens: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def tokens_on(run: Run, batch: int = 4, length: int = 17) -> torch.Tensor:
    return torch.randint(0, 256, (batch, length)).to(run.device)


def noise(run: Run, *shape: int, **options: Any) -> torch.Tensor:
    """Random numbers that are the same on every device."""
    return torch.randn(*shape).to(run.device, **options)


def state_of(model: nn.Module, *optimizers: torch.optim.Optimizer) -> Values:
    values: Values = {"model": dict(model.state_dict())}
    values["gradients"] = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    for number, optimizer in enumerate(optimizers):
        states = optimizer.state_dict()["state"]
        values[f"optimizer{number}"] = {str(key): dict(state) for key, state in states.items()}
    return values


def train(
    run: Run,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[int], torch.Tensor],
    steps: int = 3,
    clip: float | None = 1.0,
) -> Values:
    losses = []
    for index in range(steps):
        optimizer.zero_grad()
        loss = loss_of(index)
        loss.backward()
        run.between()
        if clip is not None:
            losses.append(nn.utils.clip_grad_norm_(model.parameters(), clip))
        optimizer.step()
        losses.append(loss.detach())
        run.between()
    return {"losses": losses, **state_of(model, optimizer)}


def train_transformer(
    run: Run,
    optimizer_class: type = torch.optim.AdamW,
    steps: int = 3,
    model: Transformer | None = None,
    **options: Any,
) -> Values:
    model = (model or Transformer()).to(run.device)
    options.setdefault("lr", 1e-3)
    return train(
        run, model, optimizer_class(model.parameters(), **options), lambda _: model.loss(tokens_on(run)), steps
    )
