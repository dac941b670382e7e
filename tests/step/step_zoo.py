"""Small models, losses and data for the tests of one step; nothing here knows a trainer."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from xtrainer.parallel import (
    BatchLayout,
    ParallelConfig,
    build_mesh,
    copy_tree,
    state_shardings,
)
from xtrainer.state import TrainState
from xtrainer.step import StepReport

Data = dict[str, Any]
LossFn = Callable[..., Any]
FEATURES, WIDTH, TOKENS = 4, 5, 3


def counters(report: jax.Array) -> StepReport:
    """Returns the guard's counters of a report, without what belongs to its step alone."""
    return StepReport(*StepReport.fetch(report)[:4])


class Net(nn.Module):
    """Two layers; with BatchNorm, dropout and sown values on request."""

    width: int = WIDTH
    batch_norm: bool = False
    dropout: float = 0.0
    sown: int = 0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = nn.Dense(self.width)(x)
        if self.batch_norm:
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        x = nn.tanh(x)
        for _ in range(self.sown):
            self.sow("intermediates", "mean", x.mean())
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(TOKENS)(x)


def make_data(rows: int, seed: int = 0) -> Data:
    """Returns rows with inputs, targets, and a weight for each row and each token."""
    generator = np.random.default_rng(seed)
    return {
        "x": generator.normal(size=(rows, FEATURES)).astype(np.float32),
        "y": generator.normal(size=(rows, TOKENS)).astype(np.float32),
        "row_weight": generator.uniform(0.1, 5.0, size=rows).astype(np.float32),
        "token_weight": (generator.integers(0, 2, size=(rows, TOKENS)) * 2.5).astype(np.float32),
    }


def predict(params: Any, apply_fn: Any, batch: Data, rng: jax.Array, train: bool) -> jax.Array:
    return apply_fn({"params": params}, batch["x"], train=train, rngs={"dropout": rng})


def squared_error(params: Any, apply_fn: Any, batch: Data, rng: Any, train: bool) -> jax.Array:
    """Returns one error per row and token."""
    return (predict(params, apply_fn, batch, rng, train) - batch["y"]) ** 2


def example_loss(params: Any, apply_fn: Any, batch: Data, rng: Any, train: bool = True) -> Any:
    """One value per example, the commonest form."""
    loss = squared_error(params, apply_fn, batch, rng, train).mean(-1)
    return loss, ({"small": loss < 1.0}, {})


def scalar_loss(params: Any, apply_fn: Any, batch: Data, rng: Any, train: bool = True) -> Any:
    loss, (metrics, _) = example_loss(params, apply_fn, batch, rng, train)
    return loss.mean(), ({"small": metrics["small"].mean()}, {})


def pair_loss(params: Any, apply_fn: Any, batch: Data, rng: Any, train: bool = True) -> Any:
    loss, (metrics, _) = example_loss(params, apply_fn, batch, rng, train)
    count = loss.shape[0]
    small = {"value": metrics["small"].sum(), "count": count}
    return {"value": loss.sum(), "count": count}, ({"small": small}, {})


def row_weighted_loss(params: Any, apply_fn: Any, batch: Data, rng: Any, train: bool = True) -> Any:
    loss = squared_error(params, apply_fn, batch, rng, train).mean(-1)
    return {"value": loss, "count": batch["row_weight"]}, ({}, {})


def token_weighted_loss(
    params: Any, apply_fn: Any, batch: Data, rng: Any, train: bool = True
) -> Any:
    loss = squared_error(params, apply_fn, batch, rng, train)
    return {"value": loss, "count": batch["token_weight"]}, ({}, {})


def weighted_pair_loss(
    params: Any, apply_fn: Any, batch: Data, rng: Any, train: bool = True
) -> Any:
    loss = squared_error(params, apply_fn, batch, rng, train)
    weight = batch["token_weight"]
    return {"value": (loss * weight).sum(), "count": weight.sum()}, ({}, {})


def make_state(
    model: nn.Module | None = None,
    optimizer: optax.GradientTransformation | None = None,
    seed: int = 0,
) -> TrainState:
    """Returns the state of a model (``Net`` where None) before its first step."""
    variables = dict(init_variables(model or Net(), seed))
    params = variables.pop("params")
    variables.pop("intermediates", None)
    return TrainState.create(
        params, optimizer or optax.sgd(0.1), jax.random.key(seed + 1), variables
    )


@functools.cache
def init_variables(model: nn.Module, seed: int) -> Any:
    return jax.jit(model.init)(jax.random.key(seed), np.ones((1, FEATURES), np.float32))


def on_devices(state: TrainState, config: ParallelConfig) -> tuple[TrainState, BatchLayout]:
    """Returns the state on a mesh, and the batch layout; eight devices unless the sizes say 1."""
    alone = set(config.axis_sizes.values()) == {1}
    mesh = build_mesh(config, jax.devices()[:1] if alone else None)
    placed = copy_tree(state, state_shardings(state, mesh, config))
    return placed, BatchLayout.of(mesh, config)


def host(tree: Any) -> Any:
    """Returns the tree as NumPy arrays, keys as their data."""

    def fetch(x: jax.Array) -> np.ndarray:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.random.key_data(x)
        return np.array(x)

    return jax.tree.map(fetch, tree)


def assert_close(actual: Any, expected: Any, rtol: float, atol: float = 0.0) -> None:
    """Compares two trees leaf by leaf, relative to each leaf's largest entry."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(host(actual)), jax.tree.leaves(host(expected)), strict=True):
        scale = float(np.abs(b).max(initial=0.0))
        np.testing.assert_allclose(a, b, rtol=0, atol=max(rtol * scale, atol))


def assert_identical(actual: Any, expected: Any) -> None:
    """Compares two trees bit for bit, types included."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(host(actual)), jax.tree.leaves(host(expected)), strict=True):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
