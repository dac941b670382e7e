"""The three clippings: what each of them does, and in which order."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from xtrainer.errors import ConfigError
from xtrainer.optim import OptimizerConfig, SchedulerConfig, build_optimizer
from xtrainer.optim.transforms import clip_each_norm
from xtrainer.tree import flatten_with_paths

SGD = OptimizerConfig(name="sgd", scheduler=SchedulerConfig(lr=1.0))
GRADIENT = {"a": jnp.array([30.0, 40.0]), "b": jnp.array([0.0, 120.0])}
"""Norms 50 and 120, in all 130."""


def clipped(gradient, **clips: float):
    """Returns the gradient as the optimizer sees it: SGD with a rate of 1 takes it as it is."""
    transform = build_optimizer(dataclasses.replace(SGD, **clips)).transform
    updates, _ = transform.update(gradient, transform.init(gradient), gradient)
    return jax.tree.map(lambda u: -u, updates)


def each(gradient, max_norm: float):
    transform = clip_each_norm(max_norm)
    return transform.update(gradient, transform.init(gradient))[0]


def test_each_parameter_is_clipped_by_its_own_norm() -> None:
    found = clipped(GRADIENT, grad_clip_norm_per_param=60.0)
    np.testing.assert_array_equal(found["a"], [30.0, 40.0])  # its norm is 50
    np.testing.assert_allclose(found["b"], [0.0, 60.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("clips", "a", "b"),
    [
        # To 13 in all: (3, 4) of norm 5 and (0, 12).
        ({"grad_clip_norm": 13.0}, [3.0, 4.0], [0.0, 12.0]),
        # To 6.5 in all: (1.5, 2) and (0, 6). The other order would give (2.8, 3.7) and (0, 4.6).
        ({"grad_clip_norm": 6.5, "grad_clip_norm_per_param": 5.0}, [1.5, 2.0], [0.0, 5.0]),
        # Each to 5, then values to 3.5. The other order would leave (3.5, 3.5), whose norm is 4.9.
        ({"grad_clip_norm_per_param": 5.0, "grad_clip_value": 3.5}, [3.0, 3.5], [0.0, 3.5]),
        (
            {"grad_clip_norm": 13.0, "grad_clip_norm_per_param": 10.0, "grad_clip_value": 3.5},
            [3.0, 3.5],
            [0.0, 3.5],
        ),
        (
            {"grad_clip_norm": 13.0, "grad_clip_norm_per_param": 2.5, "grad_clip_value": 2.25},
            [1.5, 2.0],
            [0.0, 2.25],
        ),
    ],
)
def test_the_global_norm_comes_first_then_each_norm_then_values(clips, a, b) -> None:
    found = clipped(GRADIENT, **clips)
    np.testing.assert_allclose(found["a"], a, rtol=1e-6)
    np.testing.assert_allclose(found["b"], b, rtol=1e-6)


def test_each_norm_equals_the_clipping_of_optax_for_one_parameter() -> None:
    gradient = {"a": jax.random.normal(jax.random.key(0), (7, 3)), "b": jnp.full(4, 0.1)}
    theirs = optax.clip_by_global_norm(0.5)
    for name, leaf in each(gradient, 0.5).items():
        expected, _ = theirs.update(gradient[name], theirs.init(gradient[name]))
        np.testing.assert_allclose(leaf, expected, rtol=1e-6)
    np.testing.assert_array_equal(each(gradient, 0.5)["b"], gradient["b"])  # bit for bit


def test_what_is_not_finite_stays_in_its_parameter() -> None:
    gradient = {"nan": jnp.array([jnp.nan, 1.0]), "inf": jnp.array([jnp.inf]), "good": jnp.ones(1)}
    found = each(gradient, 0.5)
    np.testing.assert_array_equal(found["nan"], gradient["nan"])
    assert np.isnan(found["inf"]).all()
    np.testing.assert_allclose(found["good"], [0.5])


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_each_norm_of_low_precision_is_summed_in_float32(dtype) -> None:
    found = each({"a": jnp.full(4096, 300.0, dtype)}, 1.0)["a"]  # 300**2 overflows float16
    assert found.dtype == dtype
    np.testing.assert_allclose(found.astype(jnp.float32), 1 / 64, rtol=1e-2)


def test_a_frozen_parameter_takes_no_part() -> None:
    clips = {"grad_clip_norm": 5.0, "grad_clip_norm_per_param": 4.0, "grad_clip_value": 3.5}
    found = clipped(GRADIENT, freeze=("b",), **clips)
    np.testing.assert_allclose(found["a"], [2.4, 3.2], rtol=1e-6)
    np.testing.assert_array_equal(found["b"], 0.0)


def test_clipping_keeps_nothing_that_a_checkpoint_would_hold() -> None:
    clips = {"grad_clip_norm": 5.0, "grad_clip_norm_per_param": 4.0, "grad_clip_value": 3.5}
    states = [
        build_optimizer(OptimizerConfig(**fields)).transform.init(GRADIENT)
        for fields in ({}, clips)
    ]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
    assert not [path for path in flatten_with_paths(states[1]) if "clip" in path]


def test_a_norm_that_is_not_positive_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.grad_clip_norm_per_param: found 0\.0"):
        build_optimizer(OptimizerConfig(grad_clip_norm_per_param=0.0))
