"""Does the step follow the loss with its penalty, once and whatever the pieces of the batch?"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import zoo
from step_zoo import (
    Net,
    assert_close,
    assert_identical,
    counters,
    example_loss,
    make_data,
    make_state,
    on_devices,
    token_weighted_loss,
)

import xtrainer as xt
from xtrainer.errors import LossError
from xtrainer.metrics import HostWindow, finish, global_norm
from xtrainer.optim import RegularizationConfig
from xtrainer.parallel import ParallelConfig
from xtrainer.step import (
    PrecisionConfig,
    StepSettings,
    diagnose_step,
    make_eval_step,
    make_train_step,
)
from xtrainer.step.gradients import make_gradient_fn

ROWS = 16
BATCH, ALL = make_data(ROWS), jnp.ones(ROWS, bool)
PARAMS = make_state().params
L2 = RegularizationConfig(strength=0.05)
KINDS = {
    "l1": RegularizationConfig(type="l1", strength=0.02),
    "l2": L2,
    "l1_l2": RegularizationConfig(type="l1_l2", l1_strength=0.01, l2_strength=0.03),
}


def gradient(settings: StepSettings, params: Any = PARAMS, loss: Any = example_loss) -> Any:
    function = jax.jit(make_gradient_fn(loss, Net().apply, settings))
    return function(params, {}, BATCH, ALL, jax.random.key(0))


def by_hand(kind: str, params: Any, chosen: str = "") -> jax.Array:
    """Returns the penalty by its formula, of the parameters whose path holds ``chosen``."""
    l1 = {"l1": 0.02, "l2": 0.0, "l1_l2": 0.01}[kind]
    l2 = {"l1": 0.0, "l2": 0.05, "l1_l2": 0.03}[kind]
    leaves = jax.tree_util.tree_leaves_with_path(params)
    kept = [leaf for path, leaf in leaves if chosen in str(path)]
    return sum(l1 * (x * jnp.sign(x)).sum() + l2 * (x**2).sum() for x in kept)  # type: ignore[return-value]


def mean_loss(params: Any) -> jax.Array:
    return example_loss(params, Net().apply, BATCH, jax.random.key(0))[0].mean()


def run(settings: StepSettings, state: Any, batch: Any = BATCH, loss: Any = example_loss) -> Any:
    step = jax.jit(make_train_step(loss, Net().apply, optax.sgd(0.1), settings))
    state, window, report = step(state, batch)
    return state, finish(HostWindow.fetch(window)), counters(report)


@pytest.mark.parametrize(
    ("kind", "count", "scan"),
    [*((kind, 1, True) for kind in KINDS), ("l1_l2", 4, True), ("l1_l2", 4, False)],
)
def test_the_gradient_is_that_of_the_mean_loss_and_the_penalty(kind, count, scan) -> None:
    settings = StepSettings(
        accumulate_steps=count, accumulate_scan=scan, regularization=KINDS[kind]
    )
    result = gradient(settings)
    expected = jax.grad(lambda p: mean_loss(p) + by_hand(kind, p))(PARAMS)
    assert_close(result.grads, expected, 1e-5)
    np.testing.assert_allclose(result.penalty, by_hand(kind, PARAMS), rtol=1e-6)
    loss = result.terms.value / result.terms.weight
    np.testing.assert_allclose(loss, mean_loss(PARAMS) + by_hand(kind, PARAMS), rtol=1e-6)


@pytest.mark.parametrize("count", [1, 4])
def test_the_weights_of_a_loss_do_not_weigh_the_penalty(count: int) -> None:
    settings = StepSettings(accumulate_steps=count)
    plain = gradient(settings, loss=token_weighted_loss)
    penalized = gradient(dataclasses.replace(settings, regularization=L2), loss=token_weighted_loss)
    added = jax.tree.map(jnp.subtract, penalized.grads, plain.grads)
    assert_close(added, jax.tree.map(lambda p: 0.1 * p, PARAMS), 1e-5, atol=1e-6)


def test_on_a_mesh_the_gradient_is_the_same() -> None:
    config = ParallelConfig(data_axis_size=2, fsdp_axis_size=4, fsdp_min_weight_size=1)
    state, layout = on_devices(make_state(), config)
    shardings = jax.tree.map(lambda x: x.sharding, state.params)
    settings = StepSettings(
        layout=layout, param_shardings=shardings, accumulate_steps=2, regularization=L2
    )
    alone = gradient(StepSettings(regularization=L2))
    spread = gradient(settings, state.params)
    assert_close(spread.grads, alone.grads, 1e-5)
    np.testing.assert_allclose(spread.penalty, alone.penalty, rtol=1e-6)


def test_frozen_parameters_do_not_count() -> None:
    result = gradient(StepSettings(regularization=L2, freeze=("Dense_0",)))
    np.testing.assert_allclose(result.penalty, by_hand("l2", PARAMS, "Dense_1"), rtol=1e-6)
    assert_identical(result.grads["Dense_0"], jax.tree.map(np.zeros_like, PARAMS["Dense_0"]))


def test_parameters_without_the_pattern_get_the_gradient_of_the_data_alone() -> None:
    kernels = dataclasses.replace(L2, include=("*/kernel",))
    plain, result = gradient(StepSettings()), gradient(StepSettings(regularization=kernels))
    np.testing.assert_allclose(result.penalty, by_hand("l2", PARAMS, "kernel"), rtol=1e-6)
    assert_identical(result.grads["Dense_1"]["bias"], plain.grads["Dense_1"]["bias"])


def test_the_row_of_training_holds_the_penalty_and_the_loss_with_it() -> None:
    settings = StepSettings(train_log_modes=("mean", "max"), regularization=L2)
    _, metrics, _ = run(settings, make_state())
    penalty, data = float(by_hand("l2", PARAMS)), float(mean_loss(PARAMS))
    np.testing.assert_allclose(metrics["regularization_mean"], penalty, rtol=1e-6)
    np.testing.assert_allclose(metrics["loss_mean"], data + penalty, rtol=1e-6)
    np.testing.assert_allclose(metrics["loss_max"], data + penalty, rtol=1e-6)
    norm = global_norm(jax.grad(lambda p: mean_loss(p) + by_hand("l2", p))(PARAMS))
    np.testing.assert_allclose(metrics["grad_norm_mean"], norm, rtol=1e-5)
    plain = run(dataclasses.replace(settings, regularization=None), make_state())[1]
    assert metrics["small_mean"] == plain["small_mean"]
    assert set(metrics) - set(plain) == {"regularization_mean"}


def test_the_loss_of_an_evaluation_is_that_of_the_data() -> None:
    step = jax.jit(make_eval_step(example_loss, Net().apply, StepSettings(regularization=L2)))
    metrics = finish(HostWindow.fetch(step(make_state(), BATCH)))
    assert not [name for name in metrics if "regularization" in name]
    np.testing.assert_allclose(metrics["loss"], mean_loss(PARAMS), rtol=1e-6)


@pytest.mark.parametrize("scale", [2.0**10, "dynamic"])
def test_the_scale_of_the_loss_does_not_scale_the_penalty(scale: Any) -> None:
    precision = PrecisionConfig(compute_dtype="float32", loss_scale=scale)
    state = make_state()
    if scale == "dynamic":
        guard = type(state.guard).create(precision.first_exponent)
        state = state.replace(guard=guard)
    scaled, _, _ = run(StepSettings(precision=precision, regularization=L2), state)
    plain, _, _ = run(StepSettings(regularization=L2), make_state())
    assert_close(scaled.params, plain.params, 1e-6)


def test_a_batch_without_weight_moves_no_parameter() -> None:
    batch = BATCH | {"token_weight": np.zeros_like(BATCH["token_weight"])}
    settings = StepSettings(regularization=L2)
    state, metrics, report = run(settings, make_state(), batch, token_weighted_loss)
    assert_identical(state.params, PARAMS)
    assert (report.step, report.skipped) == (1, 0)
    assert "loss_mean" not in metrics or metrics["loss_mean"] == 0.0


def test_the_penalty_is_computed_in_float32_of_small_parameters() -> None:
    params = jax.tree.map(lambda p: jnp.full_like(p, 300.0, jnp.float16), PARAMS)
    settings = StepSettings(
        regularization=RegularizationConfig(strength=1e-6),
        precision=PrecisionConfig(param_dtype="float16", compute_dtype="float16"),
    )
    result = gradient(settings, params)
    count = sum(leaf.size for leaf in jax.tree.leaves(PARAMS))
    np.testing.assert_allclose(result.penalty, 0.09 * count, rtol=1e-6)
    assert {leaf.dtype for leaf in jax.tree.leaves(result.grads)} == {jnp.dtype("float32")}


def test_a_penalty_that_overflows_is_refused_and_found() -> None:
    def loss(params: Any, apply_fn: Any, batch: Any, rng: Any, train: bool = True) -> Any:
        return params["w"] * batch, ({}, {})

    optimizer = optax.sgd(0.1)
    state = xt.TrainState.create({"w": jnp.full((), 1e20)}, optimizer, jax.random.key(0))
    parts = (loss, lambda variables: None, optimizer, StepSettings(regularization=L2))
    new, _, report = jax.jit(make_train_step(*parts))(state, jnp.ones(4))
    assert counters(report).skipped == 1
    assert_identical(new.params, state.params)
    assert diagnose_step(*parts, state, jnp.ones(4)).phase == "update"


def test_a_metric_with_its_name_is_refused() -> None:
    def loss(*args: Any, **kwargs: Any) -> Any:
        values, _ = example_loss(*args, **kwargs)
        return values, ({"regularization": values}, {})

    assert "regularization_mean" in run(StepSettings(), make_state(), loss=loss)[1]
    with pytest.raises(LossError, match=r"the metrics \['regularization'\].*turn off what logs"):
        run(StepSettings(regularization=L2), make_state(), loss=loss)


def test_a_trainer_adds_what_its_config_says_to_training_alone() -> None:
    config = xt.OptimizerConfig(
        name="sgd", scheduler=xt.SchedulerConfig(lr=0.1), regularization=L2, freeze=("Dense_0",)
    )
    trainer = zoo.make_trainer(optimizer=config, mesh=zoo.devices(2))
    assert trainer.step_settings().regularization == L2
    before = zoo.host(trainer.state.params)["Dense_1"]
    assert "regularization" in trainer.init_train_metrics().layout.names
    assert "regularization" not in trainer.init_eval_metrics().layout.names
    trainer.train_model(zoo.loader(16), None, num_train_steps=1)

    def objective(last: Any) -> Any:
        data, params = zoo.classification_data(16), {"Dense_1": last, **frozen}
        logits = zoo.MLP().apply({"params": params}, data.inputs, train=True)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, data.targets)
        return losses.mean() + by_hand("l2", last)

    frozen = {"Dense_0": zoo.host(trainer.state.params)["Dense_0"]}
    moved = jax.tree.map(lambda p, g: p - 0.1 * g, before, jax.grad(objective)(before))
    zoo.assert_close(trainer.state.params["Dense_1"], moved)
