"""Do activations stay spread over the batch axes, with the same numbers?"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xtrainer.parallel import BatchLayout, ParallelConfig, build_mesh, constrain_module_outputs

ROWS = 16


class Block(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, _: None = None) -> tuple[jax.Array, None]:
        return nn.tanh(nn.Dense(8)(x)), None


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        layers = nn.scan(
            nn.remat(Block), variable_axes={"params": 0}, split_rngs={"params": True}, length=2
        )
        return nn.Dense(3)(layers()(x, None)[0])


class Several(nn.Module):
    """Returns a tree; not every leaf has the batch's rows."""

    @nn.compact
    def __call__(self, x: jax.Array) -> dict[str, Any]:
        return {"rows": nn.Dense(8)(x), "vector": x.sum(1), "other": x[:3], "none": None}


PLAIN = nn.Sequential([nn.Dense(8), nn.tanh, nn.Dense(3)])


def layout(**sizes: int) -> BatchLayout:
    config = ParallelConfig(**sizes)
    return BatchLayout.of(build_mesh(config), config)


def forward(model: nn.Module, chosen: BatchLayout | None, rows: int = ROWS) -> Any:
    def apply(variables: Any, x: jax.Array) -> Any:
        with constrain_module_outputs(chosen, rows):
            return model.apply(variables, x)

    return apply


def data(model: nn.Module) -> tuple[Any, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(ROWS, 8)).astype(np.float32)
    return model.init(jax.random.key(0), x), x


def num_constraints(model: nn.Module, chosen: BatchLayout | None, rows: int = ROWS) -> int:
    jaxpr = jax.make_jaxpr(forward(model, chosen, rows))(*data(model))
    return str(jaxpr).count("sharding_constraint[")


def test_the_output_of_every_module_is_constrained() -> None:
    assert num_constraints(PLAIN, layout()) == 3  # two layers and the model


def test_constraints_reach_inside_scan_and_remat() -> None:
    variables, x = data(Scanned())
    text = str(jax.make_jaxpr(forward(Scanned(), layout()))(variables, x))
    inside = text[text.index("scan[") :]
    assert "checkpoint[" in text or "remat" in text
    assert inside.count("sharding_constraint[") >= 2


def test_only_leaves_with_the_rows_of_the_batch_are_constrained() -> None:
    assert num_constraints(Several(), layout()) == 2  # the layer, and "rows" of the model


@pytest.mark.parametrize(
    ("chosen", "rows"),
    [(None, ROWS), (layout(), ROWS - 4), (layout(data_axis_size=1, model_axis_size=8), ROWS)],
)
def test_where_nothing_can_be_spread_nothing_is_constrained(
    chosen: BatchLayout | None, rows: int
) -> None:
    assert num_constraints(PLAIN, chosen, rows) == 0


def test_after_the_context_modules_are_as_before() -> None:
    variables, x = data(PLAIN)
    with pytest.raises(RuntimeError), constrain_module_outputs(layout(), ROWS):
        raise RuntimeError
    assert "sharding_constraint" not in str(jax.make_jaxpr(PLAIN.apply)(variables, x))


@pytest.mark.parametrize("model", [PLAIN, Scanned()], ids=["plain", "scanned"])
def test_the_numbers_are_the_same(model: nn.Module) -> None:
    chosen = layout(fsdp_axis_size=4)
    variables, x = data(model)

    def loss(apply: Any) -> Any:
        return jax.jit(jax.value_and_grad(lambda v, x: (apply(v, x) ** 2).mean()))

    value, grads = loss(model.apply)(variables, x)
    spread = jax.device_put(x, chosen.sharding(ROWS))
    constrained = loss(forward(model, chosen))(variables, spread)
    np.testing.assert_allclose(constrained[0], value, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(constrained[1]), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_the_output_of_a_compiled_model_is_spread() -> None:
    chosen = layout()
    variables, x = data(PLAIN)
    whole = jax.device_put((variables, x), chosen.replicated)
    output = jax.jit(forward(PLAIN, chosen))(*whole)
    assert output.sharding.is_equivalent_to(chosen.sharding(ROWS), output.ndim)
    assert jnp.all(jnp.isfinite(output))
