"""Do activations stay spread over the batch axes, with the same numbers?"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxpr_zoo import primitives

from xtrainer.parallel import (
    BatchLayout,
    ParallelConfig,
    build_mesh,
    constrain_batch,
    constrain_module_outputs,
)

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


def test_scanned_layers_are_spread_in_the_backward_pass_too() -> None:
    variables, x = data(Scanned())

    def loss(variables: Any) -> jax.Array:
        return forward(Scanned(), layout())(variables, x).sum()

    found = jax.make_jaxpr(jax.grad(loss))(variables)
    scans = [equation for equation in found.jaxpr.eqns if equation.primitive.name == "scan"]
    assert [scan.params["reverse"] for scan in scans] == [False, True]
    again = [path for path in primitives(scans[1].params["jaxpr"]) if "remat2" in path]
    # What is computed again is spread, and what comes back through it.
    assert [path[-1] for path in again].count("sharding_constraint") >= 2


def plain_loss(params: Any, x: jax.Array) -> Any:
    """A model of no framework whose layers are scanned."""

    @jax.checkpoint
    def layer(hidden: jax.Array, weight: jax.Array) -> tuple[jax.Array, None]:
        return constrain_batch(jnp.tanh(hidden @ weight)), None

    hidden, _ = jax.lax.scan(layer, constrain_batch({"x": x})["x"], params)
    return (hidden**2).mean()


def test_other_models_are_spread_where_they_ask_for_it() -> None:
    chosen = layout(fsdp_axis_size=4)
    params = np.random.default_rng(1).normal(size=(3, 8, 8)).astype(np.float32)
    _, x = data(PLAIN)

    def constrained(params: Any, x: Any) -> Any:
        with constrain_module_outputs(chosen, ROWS):
            return plain_loss(params, x)

    text = str(jax.make_jaxpr(constrained)(params, x))
    assert text.count("sharding_constraint[") == 2
    assert "sharding_constraint[" in text[text.index("scan[") :]
    whole = jax.device_put((params, x), chosen.replicated)
    found = jax.jit(jax.value_and_grad(constrained))(*whole)
    expected = jax.jit(jax.value_and_grad(plain_loss))(params, x)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_elsewhere_arrays_are_given_back() -> None:
    x = jnp.ones((ROWS, 2))
    assert constrain_batch(x) is x
    for chosen in (None, layout(data_axis_size=1, model_axis_size=8)):
        with constrain_module_outputs(chosen, ROWS):
            assert constrain_batch(x) is x
    with constrain_module_outputs(layout(), ROWS), constrain_module_outputs(None, ROWS):
        assert constrain_batch(x) is x


def test_only_arrays_of_the_batch_s_rows_are_spread() -> None:
    chosen = layout()
    tree = {
        "rows": jnp.ones((ROWS, 3)),
        "vector": jnp.ones(ROWS),
        "merged": jnp.ones((ROWS * 5, 3)),
        "other": jnp.ones((ROWS + 1, 3)),
        "scalar": jnp.ones(()),
        "none": None,
    }

    def apply(tree: Any) -> Any:
        with constrain_module_outputs(chosen, ROWS):
            return constrain_batch(tree)

    placed = jax.jit(apply)(jax.device_put(tree, chosen.replicated))
    spread = {
        name: not leaf.sharding.is_fully_replicated
        for name, leaf in placed.items()
        if leaf is not None
    }
    assert spread == {
        "rows": True, "vector": True, "merged": True, "other": False, "scalar": False,
    }  # fmt: skip


def test_a_function_traced_for_one_mesh_is_traced_again_for_another() -> None:
    inner = jax.jit(lambda x: constrain_batch(x * 2))
    x = jnp.ones((ROWS, 2))

    def spec(chosen: BatchLayout | None) -> Any:
        def apply(x: jax.Array) -> jax.Array:
            with constrain_module_outputs(chosen, ROWS):
                return inner(x)

        return str(jax.make_jaxpr(apply)(x))

    assert "sharding_constraint" not in spec(None)
    assert "'dp': 8" in spec(layout())
    assert "'dp': 4" in spec(layout(fsdp_axis_size=2))
    assert "sharding_constraint" not in spec(None)
