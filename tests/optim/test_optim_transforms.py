"""Clipping and weight decay as transformations of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xtrainer.optim.masks import path_mask
from xtrainer.optim.transforms import (
    check_at_init,
    clip_by_global_norm,
    decay_after_rate,
    decay_in_rate,
    freeze,
)

EVERYTHING = path_mask(None, None)


def clip(gradient: object, max_norm: float):
    transform = clip_by_global_norm(max_norm)
    return transform.update(gradient, transform.init(gradient))[0]


@settings(max_examples=25, deadline=None)
@given(
    values=st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=5),
    max_norm=st.floats(0.01, 2e3),
)
def test_clipped_gradients_equal_numpy(values: list[float], max_norm: float) -> None:
    gradient = {"a": jnp.array(values[:1]), "b": jnp.array(values[1:])}
    clipped = clip(gradient, max_norm)
    norm = np.linalg.norm(np.array(values, np.float64))
    factor = min(1.0, max_norm / norm) if norm else 1.0
    found = np.concatenate([clipped["a"], clipped["b"]])
    np.testing.assert_allclose(found, np.array(values) * factor, rtol=1e-5, atol=1e-30)


def test_a_short_gradient_is_left_bit_for_bit() -> None:
    gradient = {"a": jnp.array([0.1, 0.2])}
    np.testing.assert_array_equal(clip(gradient, 1.0)["a"], gradient["a"])


def test_clipping_equals_optax_in_float32() -> None:
    gradient = {"a": jax.random.normal(jax.random.key(0), (7, 3)), "b": jnp.ones(4)}
    theirs = optax.clip_by_global_norm(0.5)
    expected = theirs.update(gradient, theirs.init(gradient))[0]
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), clip(gradient, 0.5), expected
    )


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_the_norm_of_low_precision_gradients_is_summed_in_float32(dtype) -> None:
    gradient = {"a": jnp.full(4096, 300.0, dtype)}  # 300**2 overflows float16
    clipped = clip(gradient, 1.0)["a"]
    assert clipped.dtype == dtype
    np.testing.assert_allclose(clipped.astype(jnp.float32), 1 / 64, rtol=1e-2)


def test_nan_stays_in_its_leaf() -> None:
    clipped = clip({"bad": jnp.array([jnp.nan]), "good": jnp.array([2.0])}, 1.0)
    assert np.isnan(clipped["bad"]).all()
    np.testing.assert_array_equal(clipped["good"], [2.0])


def test_decay_in_rate_adds_the_weights() -> None:
    transform = decay_in_rate(0.5, path_mask(None, ["bias"]))
    params = {"kernel": jnp.array([2.0]), "bias": jnp.array([2.0])}
    updates, _ = transform.update(
        jax.tree.map(jnp.zeros_like, params), transform.init(params), params
    )
    assert {name: float(leaf[0]) for name, leaf in updates.items()} == {"kernel": 1.0, "bias": 0.0}


def test_decay_after_rate_follows_the_schedule() -> None:
    transform = decay_after_rate(0.5, lambda step: 0.25 * (step + 1), EVERYTHING)
    params, zero = {"w": jnp.array([2.0])}, {"w": jnp.zeros(1)}
    first, state = transform.update(zero, transform.init(params), params)
    second, _ = transform.update(zero, state, params)
    assert (float(first["w"][0]), float(second["w"][0])) == (-0.25, -0.5)


def test_the_check_at_init_sees_the_parameters() -> None:
    seen = []
    transform = check_at_init(optax.sgd(0.1), seen.append)
    params = {"w": jnp.ones(2)}
    state = transform.init(params)
    assert seen == [params]
    updates, _ = transform.update(params, state, params)
    np.testing.assert_allclose(updates["w"], -0.1, rtol=1e-6)


def test_a_frozen_parameter_has_no_moments_and_no_update() -> None:
    params = {"still": jnp.ones(3), "moving": jnp.ones(2)}
    transform = freeze(optax.adam(0.1), path_mask(("still",), None))
    state = transform.init(params)
    assert isinstance(state[0].mu["still"], optax.MaskedNode)
    updates, state = transform.update(params, state, params)
    np.testing.assert_array_equal(updates["still"], 0)
    assert (updates["moving"] < 0).all()
    assert isinstance(state[0].nu["still"], optax.MaskedNode)


def test_what_moves_beside_a_frozen_parameter_moves_as_if_alone() -> None:
    gradients = {"a": jnp.full(2, 30.0), "b": jnp.full(2, jnp.inf), "c": jnp.full(2, 40.0)}
    transform = freeze(clip_by_global_norm(1.0), path_mask(("b",), None))
    updates, _ = transform.update(gradients, transform.init(gradients))
    alone = {name: gradients[name] for name in ("a", "c")}
    expected, _ = clip_by_global_norm(1.0).update(alone, optax.EmptyState())
    np.testing.assert_array_equal(updates["a"], expected["a"])
    np.testing.assert_array_equal(updates["c"], expected["c"])
    np.testing.assert_array_equal(updates["b"], 0)


def test_further_arguments_reach_the_transformation_below() -> None:
    def update(updates, state, params=None, *, factor):
        return jax.tree.map(lambda u: factor * u, updates), state

    scale = optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
    transform = freeze(scale, path_mask(("b",), None))
    updates, _ = transform.update({"a": jnp.ones(()), "b": jnp.ones(())}, (), factor=3.0)
    assert {name: float(u) for name, u in updates.items()} == {"a": 3.0, "b": 0.0}
