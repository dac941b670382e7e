"""Does an optimizer that asks for the loss get that of the step, its gradient, and nothing else?"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from step_zoo import (
    Net,
    assert_close,
    assert_identical,
    example_loss,
    make_data,
    make_state,
    row_weighted_loss,
)

from xtrainer.optim import OptimizerConfig, RegularizationConfig, build_optimizer, path_mask
from xtrainer.optim.transforms import freeze
from xtrainer.step import PrecisionConfig, StepSettings, make_train_step
from xtrainer.step.gradients import make_gradient_fn, mean_loss
from xtrainer.step.objective import make_objective_fn

ROWS = 16
BATCH, MASK = make_data(ROWS), jnp.ones(ROWS, bool).at[-3:].set(False)
L2 = RegularizationConfig(strength=0.05)


def both(settings: StepSettings, params: Any, model: Any = None, scale: Any = None) -> Any:
    """Returns value and gradient at ``params`` by the objective, and by the gradient itself."""
    model = model or Net()
    mutable, rng = make_state(model).mutable_variables, jax.random.key(3)
    parts = (row_weighted_loss, model.apply, settings)
    gradient = make_gradient_fn(*parts)

    def compute(params: Any) -> Any:
        operands = (mutable, BATCH, MASK, rng, scale)
        _, value_fn = make_objective_fn(*parts)(make_state(model).params, *operands)
        result = gradient(params, *operands)
        found = (value_fn(params), *jax.value_and_grad(value_fn)(params))
        return found, (mean_loss(result.terms), result.grads)

    return jax.jit(compute)(params)


@pytest.mark.parametrize(
    "settings",
    [
        StepSettings(),
        StepSettings(accumulate_steps=4),
        StepSettings(accumulate_steps=4, accumulate_scan=False),
        StepSettings(accumulate_steps=2, regularization=L2),
        StepSettings(freeze=("Dense_0",), regularization=L2),
    ],
    ids=["whole", "scan", "loop", "regularized", "frozen"],
)
def test_the_objective_is_the_loss_of_the_step_with_its_random_numbers(settings: Any) -> None:
    model = Net(batch_norm=True, dropout=0.5)
    params = jax.tree.map(lambda p: p + 0.1, make_state(model).params)
    (value, again, grads), (expected, gradient) = both(settings, params, model)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(again, expected, rtol=1e-6)
    assert_close(grads, gradient, 1e-6, atol=1e-7)


def test_a_scale_of_the_loss_is_taken_out_again() -> None:
    settings = StepSettings(precision=PrecisionConfig(compute_dtype="float16", loss_scale=256.0))
    (value, _, grads), (expected, gradient) = both(
        settings, make_state().params, scale=jnp.float32(256.0)
    )
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert_close(grads, gradient, 1e-6)


def test_its_derivative_has_the_dtype_of_the_parameters() -> None:
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), make_state().params)
    settings = StepSettings(precision=PrecisionConfig(param_dtype="bfloat16"))
    (value, _, grads), _ = both(settings, params)
    assert value.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype("bfloat16")}


def test_its_gradient_keeps_no_activations_of_other_micro_batches() -> None:
    parts = (example_loss, Net().apply, StepSettings(accumulate_steps=4))
    start = make_state().params
    _, value_fn = make_objective_fn(*parts)(start, {}, BATCH, MASK, jax.random.key(0))
    jaxpr = jax.make_jaxpr(jax.value_and_grad(value_fn))(start)
    scans = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "scan"]
    assert len(scans) == 1
    assert all(len(eqn.outvars) == eqn.params["num_carry"] for eqn in scans)


def asking(use: Any) -> optax.GradientTransformationExtraArgs:
    """Returns an optimizer whose updates are what ``use`` makes of all that it is given."""

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        return use(updates, params, **extra), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def updates_of(optimizer: Any, settings: StepSettings, loss: Any = example_loss) -> Any:
    state = make_state(Net(), optimizer)
    new, _, _ = jax.jit(make_train_step(loss, Net().apply, optimizer, settings))(state, BATCH)
    return jax.tree.map(jnp.subtract, new.params, state.params)


def test_value_and_gradient_are_what_the_step_has_computed() -> None:
    settings = StepSettings(accumulate_steps=2, regularization=L2)
    fill = lambda updates, params, value, **_: jax.tree.map(  # noqa: E731
        lambda p: jnp.full_like(p, value), params
    )
    gradient = jax.jit(make_gradient_fn(example_loss, Net().apply, settings))
    state = make_state()
    rng = jax.random.fold_in(state.rng, 0)
    result = gradient(state.params, {}, BATCH, jnp.ones(ROWS, bool), rng)
    expected = jax.tree.map(lambda p: jnp.full_like(p, mean_loss(result.terms)), state.params)
    assert_close(updates_of(asking(fill), settings), expected, 1e-5)
    given = lambda updates, params, grad, **_: grad  # noqa: E731
    assert_close(updates_of(asking(given), settings), result.grads, 1e-5, atol=1e-6)


def test_an_optimizer_that_does_not_ask_traces_nothing_more() -> None:
    calls = 0

    def loss(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return example_loss(*args, **kwargs)

    found = {}
    for name, optimizer in {
        "sgd": optax.sgd(0.1),
        "asks": asking(lambda u, p, value_fn, **_: jax.grad(value_fn)(p)),
    }.items():
        calls = 0
        updates_of(optimizer, StepSettings(), loss)
        found[name] = calls
    assert found == {"sgd": 1, "asks": 2}


FROZEN = ("Dense_0",)


def test_beside_frozen_parameters_the_optimizer_sees_the_loss_of_the_others_alone() -> None:
    seen = {}

    def use(updates: Any, params: Any, grad: Any, value_fn: Any, **_: Any) -> Any:
        seen.update(params=jax.tree.structure(params), grad=jax.tree.structure(grad))
        return jax.grad(value_fn)(params)

    optimizer = freeze(asking(use), path_mask(FROZEN, None))
    settings = StepSettings(freeze=FROZEN)
    found = updates_of(optimizer, settings)
    whole = updates_of(asking(lambda u, p, grad, **_: grad), StepSettings())
    assert_close(found["Dense_1"], whole["Dense_1"], 1e-5, atol=1e-6)
    assert_identical(found["Dense_0"], jax.tree.map(np.zeros_like, whole["Dense_0"]))
    assert seen["params"] == seen["grad"]
    assert seen["params"].num_leaves == 2


def loop(optimizer: Any, steps: int) -> Any:
    """Returns the parameters after steps of a loop by hand."""
    params = make_state().params
    state = optimizer.init(params)

    @jax.jit
    def step(params: Any, state: Any, batch: Any) -> Any:
        def value_fn(params: Any) -> Any:
            return example_loss(params, Net().apply, batch, jax.random.key(0))[0].mean()

        value, grad = jax.value_and_grad(value_fn)(params)
        extra = {"value": value, "grad": grad, "value_fn": value_fn}
        update = optax.with_extra_args_support(optimizer).update
        updates, state = update(grad, state, params, **extra)
        return optax.apply_updates(params, updates), state

    for index in range(steps):
        params, state = step(params, state, make_data(ROWS, index % 2))
    return params


STEPS = 4
READY = {
    "momo": lambda: optax.contrib.momo(learning_rate=0.1),
    "polyak_sgd": lambda: optax.polyak_sgd(max_learning_rate=0.1),
    "backtracking": lambda: optax.chain(
        optax.sgd(0.5), optax.scale_by_backtracking_linesearch(5, store_grad=True)
    ),
    "plateau": lambda: optax.chain(
        optax.sgd(0.1), optax.contrib.reduce_on_plateau(factor=0.5, patience=1, rtol=0.5)
    ),
}


@functools.cache
def by_hand(name: str) -> Any:
    return loop(READY[name](), STEPS)


@pytest.mark.parametrize(("name", "count"), [*((name, 1) for name in READY), ("backtracking", 4)])
def test_an_optimizer_that_takes_more_equals_a_loop_by_hand(name: str, count: int) -> None:
    optimizer = READY[name]()
    state = make_state(Net(), optimizer)
    settings = StepSettings(accumulate_steps=count)
    step = jax.jit(make_train_step(example_loss, Net().apply, optimizer, settings))
    for index in range(STEPS):
        state, _, report = step(state, make_data(ROWS, index % 2))
    assert int(report[1]) == 0
    assert_close(state.params, by_hand(name), 1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["optax.contrib.momo", "optax.lbfgs"])
def test_one_may_be_named_in_a_config(name: str) -> None:
    config = OptimizerConfig(name=name, grad_clip_norm=100.0)
    optimizer = build_optimizer(config).transform
    state = make_state(Net(), optimizer)
    step = jax.jit(make_train_step(example_loss, Net().apply, optimizer, StepSettings()))
    new, _, report = step(state, BATCH)
    assert int(report[1]) == 0
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), new.params, state.params)
    assert all(jax.tree.leaves(moved))
