"""The average of the parameters: its value, dtype and layout, and what it is kept around."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import xtrainer as xt
from xtrainer.config import Config
from xtrainer.errors import ConfigError
from xtrainer.optim import (
    AverageState,
    OptimizerConfig,
    SchedulerConfig,
    averaged_params,
    build_optimizer,
    forget_average,
    has_average,
    path_mask,
    scalable,
    set_update_scale,
    with_average,
)
from xtrainer.parallel import state_shardings
from xtrainer.state import TrainState
from xtrainer.tree import flatten_with_paths

PARAMS = {"dense": {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.ones(3)}}
SGD = OptimizerConfig(name="sgd", scheduler=SchedulerConfig(lr=0.1), ema_decay=0.9)


def gradient(number: int, like=PARAMS):
    random = np.random.default_rng(number)
    return jax.tree.map(lambda x: jnp.asarray(random.normal(size=x.shape), x.dtype), like)


def train(optimizer, steps: int, params=PARAMS):
    """Returns all parameters, those of the beginning first, and the last state of the optimizer."""

    @jax.jit
    def step(params, state, gradient):
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    course, state = [params], optimizer.init(params)
    for number in range(steps):
        params, state = step(params, state, gradient(number, params))
        course.append(params)
    return course, state


def numpy_average(course, decay: float):
    """Returns the weighted mean of all but the first, in float64."""
    weights = decay ** np.arange(len(course) - 1)[::-1]
    mean = lambda *leaves: np.tensordot(  # noqa: E731
        weights / weights.sum(), np.stack([np.asarray(x, np.float64) for x in leaves]), 1
    )
    return jax.tree.map(mean, *course[1:])


def assert_close(found, expected, rtol: float = 1e-6) -> None:
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-6), found, expected
    )


@pytest.mark.parametrize("decay", [0.1, 0.9, 0.9999])
@pytest.mark.parametrize("steps", [1, 2, 25])
def test_the_average_equals_numpy(decay: float, steps: int) -> None:
    course, state = train(with_average(optax.adam(0.05), decay), steps)
    assert_close(averaged_params(state, course[-1]), numpy_average(course, decay))
    assert int(state.count) == steps


def test_it_is_the_debiased_average_of_optax() -> None:
    course, state = train(with_average(optax.sgd(0.1), 0.9), 6)
    theirs = optax.ema(0.9, debias=True)
    their_state = theirs.init(PARAMS)
    for params in course[1:]:
        expected, their_state = theirs.update(params, their_state)
    assert_close(averaged_params(state, course[-1]), expected)


def test_training_is_that_of_the_optimizer_bit_for_bit() -> None:
    plain, _ = train(optax.adam(0.05), 5)
    averaged, state = train(with_average(optax.adam(0.05), 0.9), 5)
    jax.tree.map(np.testing.assert_array_equal, plain, averaged)
    assert isinstance(state.inner[0], optax.ScaleByAdamState)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_the_average_is_kept_in_float32_and_returned_in_the_dtype_of_the_parameter(dtype) -> None:
    params = jax.tree.map(lambda x: x.astype(dtype), PARAMS)
    course, state = train(with_average(optax.sgd(0.1), 0.9), 4, params)
    assert {x.dtype for x in jax.tree.leaves(state.average)} == {jnp.dtype(jnp.float32)}
    assert_close(state.average, numpy_average(course, 0.9))  # not rounded on the way
    found = averaged_params(state, course[-1])
    assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype(dtype)}


def test_before_the_first_update_there_are_the_parameters() -> None:
    optimizer = with_average(optax.sgd(0.1), 0.9)
    other = jax.tree.map(lambda x: x + 1, PARAMS)  # as after a model was loaded
    assert averaged_params(optimizer.init(PARAMS), other) is other


def test_of_parameters_that_are_there_no_more_the_average_is_forgotten() -> None:
    optimizer = optax.chain(with_average(optax.sgd(0.1), 0.9))
    _, state = train(optimizer, 3)
    state = forget_average(state, jax.device_put)
    assert averaged_params(state, PARAMS) is PARAMS
    updates, state = optimizer.update(gradient(0), state, PARAMS)
    moved = optax.apply_updates(PARAMS, updates)
    assert_close(averaged_params(state, moved), moved)


def test_of_a_frozen_parameter_no_average_is_kept() -> None:
    optimizer = build_optimizer(xt.OptimizerConfig(ema_decay=0.9, freeze=("*/bias",))).transform
    course, state = train(optimizer, 3)
    assert list(flatten_with_paths(state.average)) == ["dense/kernel"]
    found = averaged_params(state, course[-1])
    assert found["dense"]["bias"] is course[-1]["dense"]["bias"]
    expected = numpy_average(course, 0.9)["dense"]["kernel"]
    np.testing.assert_allclose(found["dense"]["kernel"], expected, rtol=1e-6)


def test_what_is_frozen_is_told_by_a_mask() -> None:
    optimizer = with_average(optax.sgd(0.1), 0.9, path_mask(("kernel",), None))
    assert list(flatten_with_paths(optimizer.init(PARAMS).average)) == ["dense/bias"]


def test_a_config_adds_the_average_around_the_whole_optimizer() -> None:
    config = OptimizerConfig(weight_decay=0.1, grad_clip_norm=1.0, ema_decay=0.9)
    course, state = train(build_optimizer(config).transform, 4)
    assert_close(averaged_params(state, course[-1]), numpy_average(course, 0.9))
    assert "inner/optimizer/mu/dense/kernel" in flatten_with_paths(state)


def test_scaled_updates_are_averaged_as_they_are_applied() -> None:
    """The scale that a plateau or a return to a checkpoint sets acts inside the average."""
    optimizer = scalable(build_optimizer(SGD).transform)
    state = set_update_scale(optimizer.init(PARAMS), 0.5, lambda value, _: jnp.asarray(value))
    updates, state = optimizer.update(gradient(0), state, PARAMS)
    moved = optax.apply_updates(PARAMS, updates)
    assert_close(moved, jax.tree.map(lambda p, g: p - 0.05 * g, PARAMS, gradient(0)))
    assert_close(averaged_params(state, moved), moved)


def test_the_average_is_found_inside_another_optimizer() -> None:
    optimizer = optax.chain(with_average(optax.sgd(0.1), 0.5), optax.identity())
    state = optimizer.init(PARAMS)
    assert has_average(state) and not has_average(optax.sgd(0.1).init(PARAMS))


def test_without_an_average_it_says_how_to_get_one() -> None:
    state = optax.adam(0.1).init(PARAMS)
    with pytest.raises(ConfigError, match=r"found no average.*ema_decay"):
        averaged_params(state, PARAMS)


def test_further_arguments_reach_the_optimizer_inside() -> None:
    def update(updates, state, params=None, *, factor):
        return jax.tree.map(lambda u: factor * u, updates), state

    inner = optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
    optimizer = with_average(inner, 0.9)
    updates, _ = optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS, factor=3.0)
    np.testing.assert_array_equal(updates["dense"]["bias"], 3.0)


def test_parameters_and_average_can_be_donated_from_the_first_step() -> None:
    optimizer = build_optimizer(SGD).transform
    params = jax.tree.map(jnp.copy, PARAMS)
    state = optimizer.init(params)

    def step(params, state):
        updates, state = optimizer.update(params, state, params)
        return optax.apply_updates(params, updates), state

    params, state = jax.jit(step, donate_argnums=(0, 1))(params, state)
    assert_close(averaged_params(state, params), params)


def test_the_average_is_laid_out_like_its_parameter() -> None:
    parallel = xt.ParallelConfig(fsdp_axis_size=8, fsdp_min_weight_size=1)
    params = {"dense": {"kernel": jnp.ones((16, 8)), "bias": jnp.ones(3)}}
    state = TrainState.create(params, build_optimizer(SGD).transform, jax.random.key(0))
    found = state_shardings(state, xt.build_mesh(parallel), parallel)
    assert isinstance(found.opt_state, AverageState)
    assert found.opt_state.average == found.params
    assert not found.params["dense"]["kernel"].is_fully_replicated


def test_a_config_with_an_average_comes_back_from_json() -> None:
    assert Config.from_dict(OptimizerConfig, SGD.to_dict()) == SGD


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5, float("nan")])
def test_a_decay_that_cannot_be_is_refused(decay: float) -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.ema_decay: found .*expected a number > 0"):
        build_optimizer(OptimizerConfig(ema_decay=decay))
