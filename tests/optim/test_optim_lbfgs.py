"""Is L-BFGS that of Optax, and is what would mislead its line search refused?"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from xtrainer.errors import ConfigError
from xtrainer.optim import OptimizerConfig, RegularizationConfig, SchedulerConfig, build_optimizer
from xtrainer.tree import flatten_with_paths

PARAMS = {"kernel": jnp.array([[2.0, -1.0], [0.5, 3.0]]), "bias": jnp.array([1.0, -2.0])}


def value_fn(params: Any) -> jax.Array:
    """Returns a function whose curvatures differ by a factor of 50."""
    kernel, bias = params["kernel"], params["bias"]
    return 25.0 * jnp.sum(kernel**2) + 0.5 * jnp.sum((bias - kernel.sum(0)) ** 2)


def walk(optimizer: Any, steps: int = 6) -> Any:
    """Returns the parameters, and the state, after some steps."""

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        value, grad = jax.value_and_grad(value_fn)(params)
        extra = {"value": value, "grad": grad, "value_fn": value_fn}
        updates, state = optimizer.update(grad, state, params, **extra)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, optimizer.init(PARAMS)
    for _ in range(steps):
        params, state = step(params, state)
    return params, state


def test_its_updates_are_those_of_optax() -> None:
    memory_size = 3  # less than the steps
    config = OptimizerConfig(name="lbfgs", memory_size=memory_size, max_linesearch_steps=5)
    line_search = optax.scale_by_zoom_linesearch(5, initial_guess_strategy="one")
    theirs = optax.lbfgs(memory_size=memory_size, linesearch=line_search)
    ours, _ = walk(build_optimizer(config).transform)
    jax.tree.map(np.testing.assert_array_equal, ours, walk(theirs)[0])
    assert float(value_fn(ours)) < 1e-2 * float(value_fn(PARAMS))


def test_it_follows_no_schedule_and_keeps_its_state_under_the_usual_keys() -> None:
    built = build_optimizer(OptimizerConfig(name="lbfgs"))
    assert built.schedule is None
    state = built.transform.init(PARAMS)
    assert list(state) == ["clip_norm", "clip_value", "optimizer", "weight_decay", "learning_rate"]
    paths = flatten_with_paths(state)
    assert paths["optimizer/diff_params_memory/kernel"].shape == (10, 2, 2)


def test_frozen_parameters_stay_and_are_not_remembered() -> None:
    transform = build_optimizer(OptimizerConfig(name="lbfgs", freeze=("bias",))).transform
    params, state = walk(transform)
    np.testing.assert_array_equal(params["bias"], PARAMS["bias"])
    assert not [path for path in flatten_with_paths(state) if path.endswith("bias")]
    expected = np.tile(PARAMS["bias"] / 52.0, (2, 1))  # of (50 + sum over rows) kernel = bias
    np.testing.assert_allclose(params["kernel"], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weight_decay": 0.1}, r"weight_decay: found 0\.1 with name='lbfgs'.*Use regularization"),
        ({"grad_clip_norm": 1.0}, r"grad_clip_norm: found 1\.0 with name='lbfgs', whose line sea"),
        ({"grad_clip_value": 1.0}, r"grad_clip_value: found 1\.0 .*Remove it"),
        ({"scheduler": SchedulerConfig(lr=0.1)}, r"scheduler: found .*lr=0\.1.*Remove it"),
        ({"momentum": 0.9}, r"momentum: found 0\.9, which lbfgs does not read"),
        ({"kwargs": {"memory_size": 3}}, r"kwargs: found .*'lbfgs', expected none"),
        ({"memory_size": 0}, r"memory_size: found 0, expected a number >= 1"),
        ({"max_linesearch_steps": 0}, r"max_linesearch_steps: found 0, expected a number >= 1"),
    ],
)
def test_what_it_cannot_follow_is_refused(fields: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        build_optimizer(OptimizerConfig(name="lbfgs", **fields))
    assert len(error.value.problems) == 1


def test_numbers_that_others_ignore_as_well_are_allowed() -> None:
    config = OptimizerConfig(
        name="lbfgs", beta1=0.5, eps=1e-6, regularization=RegularizationConfig(strength=0.1)
    )
    assert config.problems() == []


def test_its_name_is_suggested() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'lbfgs'"):
        build_optimizer(OptimizerConfig(name="lbfg"))
