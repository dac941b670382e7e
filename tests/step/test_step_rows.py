"""Do rows stay in an order that every layout of parameters is computed rightly in?"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import zoo

import xtrainer as xt
from xtrainer.parallel import BatchLayout
from xtrainer.step.gradients import make_gradient_fn
from xtrainer.step.rows import arrange_rows, inner_layout

ROWS = 32
WIDTHS = (8, 16, 16, 24)
IN, OUT = ("fsdp", "tp"), ("tp", "fsdp")
WRONG_BEFORE = [
    # Layouts of three layers whose gradient was wrong with rows in the order (data, FSDP).
    (IN, IN, IN),
    (IN, OUT, OUT),
    (OUT, (None, "tp"), IN),
    ((None, "tp"), OUT, ("tp", None)),
]


class Layers(nn.Module):
    """Three dense layers, on rows without a further axis."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for width in WIDTHS[1:]:
            x = jnp.tanh(nn.Dense(width, use_bias=False)(x))
        return x


def plain(variables: Any, x: jax.Array) -> jax.Array:
    """Returns the same without Flax, whose outputs nothing constrains."""
    for _, layer in sorted(variables["params"].items()):
        x = jnp.tanh(x @ layer["kernel"])
    return x


def loss(params: Any, apply_fn: Any, batch: Any, rng: Any, train: bool = True) -> Any:
    outputs = apply_fn({"params": params}, batch["x"])
    return jnp.sin(outputs).sum(-1) * batch["scale"], ({}, {})


def weights() -> Any:
    rng = np.random.default_rng(0)
    shapes = enumerate(zip(WIDTHS, WIDTHS[1:], strict=False))
    return {
        f"Dense_{i}": {"kernel": (rng.normal(size=shape) / shape[0] ** 0.5).astype(np.float32)}
        for i, shape in shapes
    }


def batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    shapes = {"x": (ROWS, WIDTHS[0]), "scale": (ROWS,)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def gradient(mesh: Any, parallel: xt.ParallelConfig, apply: Any, accumulate: int) -> Any:
    layout = BatchLayout.of(mesh, parallel)
    state = xt.init_state(
        lambda _, rng: {"params": jax.tree.map(jnp.asarray, weights())},
        jnp.zeros((ROWS, WIDTHS[0])),
        optax.sgd(0.1),
        mesh=mesh,
        parallel=parallel,
    )
    shardings = jax.tree.map(lambda p: p.sharding, state.params)
    settings = xt.StepSettings(
        accumulate_steps=accumulate, layout=layout, param_shardings=shardings
    )
    function, rows = make_gradient_fn(loss, apply, settings), layout.sharding(ROWS)
    return jax.jit(
        lambda params, batch, mask, rng: function(params, {}, batch, mask, rng).grads,
        in_shardings=(shardings, rows, rows, layout.replicated),
    )(state.params, batch(), np.ones(ROWS, bool), jax.random.key(0))


def tensor_parallel(rules: Any = ()) -> xt.ParallelConfig:
    return xt.ParallelConfig(
        data_axis_size=2,
        fsdp_axis_size=2,
        model_axis_size=2,
        param_rules=tuple((f"Dense_{i}/kernel", spec) for i, spec in enumerate(rules)),
    )


@pytest.mark.parametrize(
    ("apply", "accumulate"), [(Layers().apply, 1), (Layers().apply, 4), (plain, 1)]
)
def test_the_gradient_is_that_of_one_device_whatever_the_rules(apply: Any, accumulate: int) -> None:
    expected = gradient(zoo.devices(1), xt.ParallelConfig(), apply, accumulate)
    for rules in WRONG_BEFORE:
        parallel = tensor_parallel(rules)
        found = gradient(xt.build_mesh(parallel), parallel, apply, accumulate)
        zoo.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_fsdp_axis_is_outermost_only_beside_a_tensor_axis() -> None:
    parallel = tensor_parallel()
    layout = BatchLayout.of(xt.build_mesh(parallel), parallel)
    inner = inner_layout(layout)
    assert inner is not None and inner.axes == ("fsdp", "dp")
    for sizes in ((8, 1, 1), (1, 8, 1), (4, 2, 1), (4, 1, 2), (1, 4, 2)):
        names = ("data_axis_size", "fsdp_axis_size", "model_axis_size")
        parallel = xt.ParallelConfig(**dict(zip(names, sizes, strict=True)))
        layout = BatchLayout.of(xt.build_mesh(parallel), parallel)
        assert inner_layout(layout) is layout
    assert inner_layout(None) is None


@pytest.mark.parametrize("rows", [8, 6])
def test_rows_keep_their_values_wherever_they_are(rows: int) -> None:
    parallel = tensor_parallel()
    layout = BatchLayout.of(xt.build_mesh(parallel), parallel)
    x = np.arange(rows * 2).reshape(rows, 2)
    moved = jax.jit(lambda x: arrange_rows(x, layout, inner_layout(layout)))(x)
    np.testing.assert_array_equal(moved, x)
