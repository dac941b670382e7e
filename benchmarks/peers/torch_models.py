"""The models of ``benchmarks.models`` in PyTorch: as many parameters, the same arithmetic."""

from typing import Any

import torch
from torch import nn

from benchmarks import models

EPSILON = 1e-6
"""Of the layer norms, as Flax has it."""


def make_model(task: models.Task) -> nn.Module:
    """Returns the model of a task; always the same one.

    Raises:
        TypeError: If there is no such model here.
    """
    torch.manual_seed(0)
    model, inputs = task.model, task.batches[0]["inputs"]
    if isinstance(model, models.MLP):
        return make_mlp(inputs.shape[-1], model.widths)
    if isinstance(model, models.Leaves):
        return Leaves(model.leaves, model.classes)
    if isinstance(model, models.GPT):
        return GPT(model)
    if isinstance(model, models.Ballast):
        return Ballast(model.layers, model.width)
    raise TypeError(f"Found a {type(model).__name__}, expected a model of benchmarks.models.")


def make_mlp(features: int, widths: tuple[int, ...]) -> nn.Module:
    """Returns dense layers with ReLU between them."""
    parts: list[nn.Module] = []
    for before, width in zip((features, *widths), widths, strict=False):
        parts += [nn.Linear(before, width), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


class Leaves(nn.Module):
    """One matrix that is kept in many arrays."""

    def __init__(self, leaves: int, classes: int) -> None:
        super().__init__()
        rows = [nn.Parameter(torch.full((classes,), 0.1)) for _ in range(leaves)]
        self.rows = nn.ParameterList(rows)

    def forward(self, x: Any) -> Any:
        """Returns logits ``[batch, classes]``."""
        return x @ torch.stack(list(self.rows))


class Block(nn.Module):
    """A layer of the transformer: attention to what came before, and two dense layers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width, EPSILON) for _ in range(2))
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.dense = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )

    def forward(self, x: Any) -> Any:
        """Returns an array of the shape of ``x``, ``[batch, length, width]``."""
        h = self.norms[0](x)
        parts = [
            layer(h).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        ]
        seen = nn.functional.scaled_dot_product_attention(*parts, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(-2))
        return x + self.dense(self.norms[1](x))


class GPT(nn.Module):
    """A decoder-only transformer with learned positions."""

    def __init__(self, like: models.GPT) -> None:
        super().__init__()
        self.tokens = nn.Embedding(like.vocabulary, like.width)
        self.positions = nn.Embedding(like.length, like.width)
        self.blocks = nn.Sequential(*(Block(like.width, like.heads) for _ in range(like.layers)))
        self.norm = nn.LayerNorm(like.width, EPSILON)
        self.logits = nn.Linear(like.width, like.vocabulary)

    def forward(self, tokens: Any) -> Any:
        """Returns logits ``[batch, length, vocabulary]``."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.tokens(tokens) + self.positions(positions)
        return self.logits(self.norm(self.blocks(x)))


class Ballast(nn.Module):
    """Square matrices in a row."""

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(layers))
        for layer in self.layers:
            nn.init.normal_(layer.weight, std=1e-3)

    def forward(self, x: Any) -> Any:
        """Returns an array of the shape of ``x``, ``[batch, width]``."""
        for layer in self.layers:
            x = x + layer(x)
        return x
