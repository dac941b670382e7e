"""What is trained? Models, losses and batches that both sides share."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class Task:
    """A model with its optimizer and its data.

    Attributes:
        name: For messages.
        model: A Flax Linen module whose ``apply`` gives logits.
        optimizer: Any Optax transformation.
        batches: Host batches with ``inputs`` and ``targets``, read again and again.
        rate: Of ``optimizer``, for peers that bring an Adam of their own.
        epsilon: The same.
    """

    name: str
    model: nn.Module
    optimizer: optax.GradientTransformation
    batches: list[Batch]
    rate: float = 1e-3
    epsilon: float = 1e-8

    def loader(self, length: int | None = None) -> "Loader":
        """Returns the batches over and over, or as many as asked for."""
        return Loader(self.batches, length)

    def loss(self, params: Any, batch: Any) -> jax.Array:
        """Returns the loss as a hand-written loop would have it: the mean over the batch."""
        logits = self.model.apply({"params": params}, batch["inputs"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"]).mean()


class Loader:
    """Some batches in turn: without end, or a pass of a certain length."""

    def __init__(self, batches: list[Batch], length: int | None) -> None:
        self.batches = batches
        self.length = length

    def __iter__(self) -> Iterator[Batch]:
        """Starts again with the first batch."""
        endless = cycle(self.batches)
        if self.length is None:
            return endless
        return (next(endless) for _ in range(self.length))

    def __len__(self) -> int:
        """Returns the number of batches of a pass.

        Raises:
            TypeError: If there is no end.
        """
        if self.length is None:
            raise TypeError("An endless loader has no length.")
        return self.length


class MLP(nn.Module):
    """Dense layers with ReLU between them; two arrays a layer."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns logits ``[batch, widths[-1]]``."""
        for width in self.widths[:-1]:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.widths[-1])(x)


class Leaves(nn.Module):
    """One matrix that is kept in many arrays, so that only their number costs anything."""

    leaves: int
    classes: int = 4

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns logits ``[batch, classes]`` of inputs ``[batch, leaves]``."""
        init = nn.initializers.constant(0.1)  # a thousand random draws would compile for minutes
        rows = [self.param(f"row_{i:04d}", init, (self.classes,)) for i in range(self.leaves)]
        return x @ jnp.stack(rows)


class GPT(nn.Module):
    """A decoder-only transformer with learned positions."""

    vocabulary: int
    length: int
    layers: int
    width: int
    heads: int

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Returns logits ``[batch, length, vocabulary]``."""
        positions = jnp.arange(tokens.shape[1])[None, :]
        x = nn.Embed(self.vocabulary, self.width)(tokens)
        x = x + nn.Embed(self.length, self.width)(positions)
        mask = nn.make_causal_mask(tokens)
        for _ in range(self.layers):
            h = nn.LayerNorm()(x)
            x = x + nn.MultiHeadDotProductAttention(self.heads)(h, h, mask=mask)
            h = nn.Dense(4 * self.width)(nn.LayerNorm()(x))
            x = x + nn.Dense(self.width)(nn.gelu(h))
        return nn.Dense(self.vocabulary)(nn.LayerNorm()(x))


class Ballast(nn.Module):
    """Square matrices in a row: a state of a certain size whose step is cheap."""

    layers: int
    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns an array of the shape of ``x``, ``[batch, width]``."""
        init = nn.initializers.normal(stddev=1e-3)
        for _ in range(self.layers):
            x = x + nn.Dense(self.width, use_bias=False, kernel_init=init)(x)
        return x


def rows_of(features: int, classes: int, rows: int, count: int = 8) -> list[Batch]:
    """Returns batches of normal inputs with integer targets; always the same ones."""
    rng = np.random.default_rng(0)
    return [
        {
            "inputs": rng.normal(size=(rows, features)).astype(np.float32),
            "targets": rng.integers(classes, size=(rows,)).astype(np.int32),
        }
        for _ in range(count)
    ]


def mlp_task(rows: int = 32, width: int = 16) -> Task:
    """Returns the tiny network: ten parameter arrays, a step of some tens of microseconds."""
    model = MLP((width,) * 4 + (10,))
    return Task("tiny network", model, optax.adam(1e-3), rows_of(width, 10, rows))


def leaves_task(leaves: int, rows: int = 32) -> Task:
    """Returns a model of as many parameter arrays as asked for."""
    return Task(f"{leaves} arrays", Leaves(leaves), optax.adam(1e-3), rows_of(leaves, 4, rows))


def gpt_task(
    rows: int = 8, length: int = 64, layers: int = 2, width: int = 128, vocabulary: int = 256
) -> Task:
    """Returns the small transformer."""
    rng = np.random.default_rng(0)
    texts = rng.integers(vocabulary, size=(4, rows, length + 1)).astype(np.int32)
    batches = [{"inputs": text[:, :-1], "targets": text[:, 1:]} for text in texts]
    model = GPT(vocabulary, length, layers, width, heads=4)
    return Task("small transformer", model, optax.adam(1e-3), batches)


def ballast_task(megabytes: int, layers: int = 50, rows: int = 8) -> Task:
    """Returns a model whose parameters and two moments have about so many megabytes."""
    width = max(8, round((megabytes * 1e6 / (3 * 4 * layers)) ** 0.5))
    model = Ballast(layers, width)
    batches = rows_of(width, width, rows)
    return Task(f"{megabytes} MB", model, optax.adam(1e-6), batches, rate=1e-6)
