"""Are parameters cast once per step, gradients unscaled before they are clipped, sums wide?"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from step_zoo import Data, Net, assert_identical, example_loss, make_data, make_state

from xtrainer.metrics import HostWindow, finish
from xtrainer.optim import OptimizerConfig, SchedulerConfig, build_optimizer
from xtrainer.state import GuardState, TrainState
from xtrainer.step import PrecisionConfig, StepSettings, make_eval_step, make_train_step
from xtrainer.step.gradients import make_gradient_fn

ROWS = 16

# Clipping.

CLIPS = {
    "norm": {"grad_clip_norm": 0.125},
    "value": {"grad_clip_value": 0.0625},
    "norm and value": {"grad_clip_norm": 0.25, "grad_clip_value": 0.125},
}
"""A clipping that saw gradients multiplied by the scale would give other updates."""


def exact_loss(params: Any, apply_fn: Any, batch: Data, rng: Any, train: bool = True) -> Any:
    """A loss whose gradient is the mean of ``x``, in every dtype and without any rounding."""
    return (batch["x"].astype(params["w"].dtype) * params["w"][None]).sum(-1), ({}, {})


def clipped(precision: PrecisionConfig, count: int, fields: Any) -> Any:
    """Returns the parameter after a step of gradient descent."""
    config = OptimizerConfig(name="sgd", scheduler=SchedulerConfig(lr=1.0), **fields)
    optimizer = build_optimizer(config).transform
    guard = GuardState.create(precision.first_exponent)
    state = TrainState.create({"w": jnp.zeros(3)}, optimizer, jax.random.key(0), guard=guard)
    settings = StepSettings(precision=precision, accumulate_steps=count)
    step = jax.jit(make_train_step(exact_loss, lambda variables: None, optimizer, settings))
    x = np.tile(np.array([0.03125, 0.25, -0.5], np.float32), (8, 1))
    x[::2] *= 0.5
    state, window, _ = step(state, {"x": x})
    return state.params, finish(HostWindow.fetch(window))["grad_norm_mean"]


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("scale", [1024.0, "dynamic"])
@pytest.mark.parametrize("name", CLIPS)
def test_gradients_are_clipped_after_the_scale_is_taken_out(name: str, scale: Any, count) -> None:
    half = PrecisionConfig(compute_dtype="float16", loss_scale=scale)
    scaled, norm = clipped(half, count, CLIPS[name])
    plain, expected = clipped(PrecisionConfig(), count, CLIPS[name])
    assert_identical(scaled, plain)
    assert norm == expected > 0.4
    unclipped, _ = clipped(half, count, {})
    assert (unclipped["w"] != scaled["w"]).any()


# Casts.


def equations(jaxpr: Any, within: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yields each operation with the names of those it is part of."""
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield within, equation
        for value in equation.params.values():
            if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
                yield from equations(value, (*within, equation.primitive.name))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_parameters_are_cast_once_per_step_and_not_per_micro_batch(dtype: str) -> None:
    precision = PrecisionConfig(compute_dtype=dtype)
    settings = StepSettings(precision=precision, accumulate_steps=2)  # pieces of (8, 4)
    state = make_state()
    gradient = make_gradient_fn(example_loss, Net().apply, settings)
    args = (state.params, {}, make_data(ROWS), jnp.ones(ROWS, bool), state.rng)
    shapes = {leaf.shape for leaf in jax.tree.leaves(state.params)}
    narrowed = [
        (within, equation.outvars[0].aval.shape)
        for within, equation in equations(jax.make_jaxpr(gradient)(*args))
        if equation.primitive.name == "convert_element_type"
        and equation.params["new_dtype"] == jnp.dtype(dtype)
        and equation.invars[0].aval.dtype == jnp.float32
    ]
    outside = sorted(shape for within, shape in narrowed if "scan" not in within)
    assert outside == sorted(leaf.shape for leaf in jax.tree.leaves(state.params))
    assert not [shape for within, shape in narrowed if "scan" in within and shape in shapes]


# Sums.


@pytest.mark.parametrize("count", [1, 4])
def test_metrics_of_small_outputs_are_summed_in_float32(count: int) -> None:
    def loss(params: Any, apply_fn: Any, batch: Data, rng: Any, train: bool = True) -> Any:
        output = apply_fn({"params": params}, batch["x"])
        assert output.dtype == jnp.bfloat16
        ones = jnp.ones_like(output[:, 0])
        metrics = {
            "ones": {"value": ones, "log_modes": ["sum"]},
            "pair": {"value": ones.astype(jnp.float32).sum() * 3, "count": ones.shape[0]},
        }
        return ones * output.mean(-1).astype(jnp.bfloat16), (metrics, {})

    rows = 1028  # in bfloat16, 256 + 1 is 256
    precision = PrecisionConfig(compute_dtype="bfloat16", output_dtype="bfloat16")
    settings = StepSettings(precision=precision, accumulate_steps=count)
    parts = (loss, Net().apply)
    step = jax.jit(make_train_step(*parts, optax.identity(), settings))
    state = make_state(optimizer=optax.identity())
    window = None
    for _ in range(2):
        _, window, _ = step(state, make_data(rows), None, window)
    assert window is not None
    metrics = finish(HostWindow.fetch(window))
    assert (metrics["ones_sum"], metrics["pair_mean"]) == (2.0 * rows, 3.0)
    evaluated = jax.jit(make_eval_step(*parts, settings))(state, make_data(rows))
    found = finish(HostWindow.fetch(evaluated))
    assert (found["ones"], found["pair"]) == (1.0, 3.0)
    wide = StepSettings(accumulate_steps=count)
    np.testing.assert_allclose(metrics["loss_mean"], mean_output(wide, rows), rtol=0.02, atol=5e-3)


def mean_output(settings: StepSettings, rows: int) -> float:
    """Returns the mean of the outputs in float32."""
    state = make_state()
    outputs = Net().apply({"params": state.params}, make_data(rows)["x"])
    return float(jnp.mean(outputs))  # type: ignore[arg-type]
