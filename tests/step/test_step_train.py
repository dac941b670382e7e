"""Does one training step do what a loop written by hand would do?"""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from step_zoo import (
    Data,
    Net,
    assert_close,
    assert_identical,
    counters,
    example_loss,
    make_data,
    make_state,
    on_devices,
    pair_loss,
    predict,
    scalar_loss,
    token_weighted_loss,
)

from xtrainer.errors import BatchError, LossError
from xtrainer.metrics import DeviceMetrics, HostWindow, finish
from xtrainer.parallel import ParallelConfig
from xtrainer.state import TrainState
from xtrainer.step import StepReport, StepSettings, describe_loss, make_train_step, train_layout
from xtrainer.types import LossFunction

ROWS = 16
ADAM = optax.adam(1e-2)


@functools.cache
def train(
    loss: LossFunction,
    steps: int,
    optimizer: optax.GradientTransformation = ADAM,
    settings: StepSettings | None = None,
) -> TrainState:
    step = jax.jit(make_train_step(loss, Net().apply, optimizer, settings))
    state = make_state(Net(), optimizer)
    for index in range(steps):
        state, _, _ = step(state, make_data(ROWS, index))
    return state


def train_by_hand(steps: int) -> tuple[Any, Any]:
    """Returns parameters and optimizer state after a plain Optax loop over whole batches."""

    def mean_loss(params: Any, batch: Data) -> jax.Array:
        return ((Net().apply({"params": params}, batch["x"]) - batch["y"]) ** 2).mean()

    params = make_state().params
    opt_state = ADAM.init(params)
    gradient = jax.jit(jax.grad(mean_loss))
    for index in range(steps):
        updates, opt_state = ADAM.update(gradient(params, make_data(ROWS, index)), opt_state)
        params = optax.apply_updates(params, updates)
    return params, opt_state


@pytest.mark.parametrize("loss", [example_loss, scalar_loss, pair_loss])
def test_every_form_of_a_loss_trains_like_a_plain_optax_loop(loss: LossFunction) -> None:
    params, opt_state = train_by_hand(6)
    state = train(loss, 6)
    assert_close(state.params, params, 0.0, atol=1e-6)
    assert_close(state.opt_state, opt_state, 0.0, atol=1e-6)
    assert int(state.step) == 6


def test_the_forms_of_a_loss_give_the_same_parameters() -> None:
    states = [train(loss, 6) for loss in (example_loss, scalar_loss, pair_loss)]
    for other in states[1:]:
        assert_close(other.params, states[0].params, 0.0, atol=1e-6)


@pytest.mark.parametrize("scan", [True, False])
def test_accumulated_steps_train_like_whole_batches(scan: bool) -> None:
    sgd = optax.sgd(0.1, momentum=0.9)
    whole = train(token_weighted_loss, 6, optimizer=sgd)
    settings = StepSettings(accumulate_steps=4, accumulate_scan=scan)
    pieces = train(token_weighted_loss, 6, optimizer=sgd, settings=settings)
    assert_close(pieces.params, whole.params, 1e-5)


@pytest.mark.parametrize("scan", [True, False])
def test_a_batch_that_does_not_divide_is_an_error_while_tracing(scan: bool) -> None:
    settings = StepSettings(accumulate_steps=5, accumulate_scan=scan)
    step = make_train_step(example_loss, Net().apply, ADAM, settings)
    with pytest.raises(BatchError, match="16 rows does not divide into .*_steps=5 "):
        jax.eval_shape(step, make_state(Net(), ADAM), make_data(ROWS))


def test_many_steps_are_traced_once() -> None:
    step = make_train_step(example_loss, Net().apply, ADAM)
    traced_once = jax.jit(chex.assert_max_traces(step, 1))
    state, window, _ = jax.jit(step)(make_state(Net(), ADAM), make_data(ROWS))
    window = DeviceMetrics.zeros(window.layout)
    mask = jnp.ones(ROWS, bool)
    for index in range(4):
        state, window, _ = traced_once(state, make_data(ROWS, index), mask, window)
    assert int(window.calls) == 4


@pytest.mark.parametrize("pieces", [1, 4])
def test_a_step_keeps_the_structure_types_and_key_of_the_state(pieces: int) -> None:
    model = Net(batch_norm=True)
    state = make_state(model, ADAM)
    step = make_train_step(example_loss, model.apply, ADAM, StepSettings(accumulate_steps=pieces))
    new, _, _ = jax.jit(step)(state, make_data(ROWS))
    assert_identical(new.rng, state.rng)
    for before, after in zip(jax.tree.leaves(state), jax.tree.leaves(new), strict=True):
        assert before.aval == after.aval  # shape, dtype and weak type: what a compilation sees


def test_the_key_is_that_of_seed_step_and_micro_batch() -> None:
    def loss(params: Any, apply_fn: Any, batch: Data, rng: Any, train: bool = True) -> Any:
        return params["Dense_0"]["kernel"].sum(), ({"drawn": jax.random.uniform(rng)}, {})

    step = jax.jit(make_train_step(loss, Net().apply, ADAM, StepSettings(accumulate_steps=2)))
    start, drawn = make_state(Net(), ADAM), []
    for number in (0, 7, 8):
        _, window, _ = step(start.replace(step=jnp.int32(number)), make_data(ROWS))
        drawn.append(finish(HostWindow.fetch(window))["drawn_mean"])
        of_step = jax.random.fold_in(start.rng, number)
        keys = [jax.random.fold_in(of_step, index) for index in range(2)]
        expected = np.mean([float(jax.random.uniform(key)) for key in keys])
        assert drawn[-1] == pytest.approx(expected, rel=1e-6)
    assert len(set(drawn)) == 3


@pytest.mark.parametrize(
    ("pieces", "config"),
    [
        (1, ParallelConfig()),
        (2, ParallelConfig(data_axis_size=2, fsdp_axis_size=4, fsdp_min_weight_size=0)),
    ],
)
def test_random_numbers_do_not_depend_on_the_devices(pieces: int, config: ParallelConfig) -> None:
    alone = dropout_losses(pieces, None)
    assert len(set(alone)) == len(alone)
    np.testing.assert_allclose(dropout_losses(pieces, config), alone, rtol=1e-6)


def dropout_losses(pieces: int, config: ParallelConfig | None) -> list[float]:
    """Returns the loss of each step of a model with dropout, on one device or on a mesh."""
    model, sgd = Net(dropout=0.4, width=16), optax.sgd(0.05)
    state, layout = make_state(model, sgd), None
    if config is not None:
        state, layout = on_devices(state, config)
    settings = StepSettings(accumulate_steps=pieces, layout=layout, log_grad_norm=False)
    step = jax.jit(make_train_step(example_loss, model.apply, sgd, settings))
    batch = make_data(32)
    batch = jax.device_put(batch, layout.sharding(32)) if layout else batch
    losses = []
    for _ in range(4):
        state, window, _ = step(state, batch)
        losses.append(finish(HostWindow.fetch(window))["loss_mean"])
    return losses


@pytest.mark.parametrize(("loss", "pieces"), [(example_loss, 1), (token_weighted_loss, 2)])
def test_padded_rows_change_nothing(loss: LossFunction, pieces: int) -> None:
    batch, full = make_data(10), make_data(16, seed=9)
    padded = jax.tree.map(lambda x, y: np.concatenate([x, y[10:]]), batch, full)
    step = jax.jit(make_train_step(loss, Net().apply, ADAM, StepSettings(accumulate_steps=pieces)))
    state = make_state(Net(), ADAM)
    plain, plain_window, _ = step(state, batch)
    masked, masked_window, _ = step(state, padded, np.arange(16) < 10)
    assert_close(masked.params, plain.params, 0.0, atol=1e-6)
    assert_close(masked.opt_state, plain.opt_state, 1e-5)
    metrics = [finish(HostWindow.fetch(window)) for window in (plain_window, masked_window)]
    assert metrics[0].keys() == metrics[1].keys()
    for name, value in metrics[0].items():
        assert metrics[1][name] == pytest.approx(value, rel=1e-6)


def test_norms_are_those_of_the_gradient_and_the_old_parameters() -> None:
    sgd = optax.sgd(0.5)
    settings = StepSettings(log_grad_norm_per_param=True, log_param_norm_per_param=True)
    old = make_state(Net(), sgd)
    new, window, _ = jax.jit(make_train_step(example_loss, Net().apply, sgd, settings))(
        old, make_data(ROWS)
    )
    metrics = finish(HostWindow.fetch(window), ("mean_nopostfix",))
    grads = jax.tree.map(lambda a, b: (a - b) / 0.5, old.params, new.params)
    for name, tree in (("grad_norm", grads), ("param_norm", old.params)):
        assert metrics[name] == pytest.approx(float(optax.tree.norm(tree)), rel=1e-5)
        for layer in ("Dense_0", "Dense_1"):
            for part in ("kernel", "bias"):
                expected = float(jnp.linalg.norm(tree[layer][part]))
                assert metrics[f"{name}/{layer}/{part}"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("param", [True, False])
def test_norms_are_logged_where_asked_for(grad: bool, param: bool) -> None:
    settings = StepSettings(log_grad_norm=grad, log_param_norm=param)
    step = make_train_step(example_loss, Net().apply, ADAM, settings)
    _, window, _ = jax.eval_shape(step, make_state(Net(), ADAM), make_data(ROWS))
    expected = ("loss", "small") + ("grad_norm",) * grad + ("param_norm",) * param
    assert window.layout.names == expected


def test_the_layout_is_known_before_the_step() -> None:
    state, batch = make_state(Net(), ADAM), make_data(ROWS)
    settings = StepSettings(train_log_modes=("max", "min"), log_param_norm_per_param=True)
    terms = describe_loss(example_loss, Net().apply, settings, state, batch, ROWS, True)
    step = make_train_step(example_loss, Net().apply, ADAM, settings)
    _, window, _ = jax.eval_shape(step, state, batch)
    layout = train_layout(terms.layout, state.params, settings)
    assert window.layout == layout
    assert layout.modes[:3] == (("max", "min"), ("max", "min"), ("mean",))


@pytest.mark.parametrize("name", ["grad_norm", "param_norm/Dense_0/bias"])
def test_a_metric_called_like_a_norm_is_an_error(name: str) -> None:
    def loss(params: Any, apply_fn: Any, batch: Data, rng: Any, train: bool = True) -> Any:
        value, _ = example_loss(params, apply_fn, batch, rng, train)
        return value, ({name: value}, {})

    settings = StepSettings(log_param_norm_per_param=True)
    step = make_train_step(loss, Net().apply, ADAM, settings)
    with pytest.raises(LossError, match=rf"returned the metrics \['{name}'\].*Rename them"):
        jax.eval_shape(step, make_state(Net(), ADAM), make_data(ROWS))


def test_a_window_gathers_the_weighted_mean_over_steps() -> None:
    step = jax.jit(make_train_step(token_weighted_loss, Net().apply, optax.sgd(0.0)))
    state, window = make_state(Net(), optax.sgd(0.0)), None
    values, weights = 0.0, 0.0
    for index in range(3):
        batch = make_data(ROWS, index)
        state, window, _ = step(state, batch, None, window)
        outputs = predict(state.params, Net().apply, batch, jax.random.key(0), True)
        errors = (np.asarray(outputs, np.float64) - batch["y"]) ** 2
        values += float((errors * batch["token_weight"]).sum())
        weights += float(batch["token_weight"].sum())
    assert isinstance(window, DeviceMetrics)
    assert finish(HostWindow.fetch(window))["loss_mean"] == pytest.approx(
        values / weights, rel=1e-6
    )


def test_a_constant_metric_is_itself_on_eight_devices() -> None:
    def loss(params: Any, apply_fn: Any, batch: Data, rng: Any, train: bool = True) -> Any:
        value, _ = example_loss(params, apply_fn, batch, rng, train)
        one = jnp.ones_like(value)
        pair = {"value": one.sum(), "count": one.sum()}
        return value, ({"rows": one, "scalar": 1.0, "pair": pair, "minus": -one}, {})

    state, layout = on_devices(make_state(Net(), ADAM), ParallelConfig())
    settings = StepSettings(
        accumulate_steps=2, layout=layout, train_log_modes=("mean", "max", "min", "single")
    )
    step = jax.jit(make_train_step(loss, Net().apply, ADAM, settings))
    window = None
    for index in range(3):
        batch = jax.device_put(make_data(32, index), layout.sharding(32))
        state, window, _ = step(state, batch, None, window)
    assert isinstance(window, DeviceMetrics)
    metrics = finish(HostWindow.fetch(window))
    for name, value in (("rows", 1.0), ("scalar", 1.0), ("pair", 1.0), ("minus", -1.0)):
        found = {mode: metrics[f"{name}_{mode}"] for mode in ("mean", "max", "min", "single")}
        assert set(found.values()) == {value}, name


def test_batch_norm_and_dropout_train_under_the_plain_signature() -> None:
    model = Net(batch_norm=True, dropout=0.2)
    before = make_state(model, ADAM)
    step = jax.jit(make_train_step(example_loss, model.apply, ADAM))
    state, windows = before, []
    for _ in range(30):
        state, window, report = step(state, make_data(ROWS))
        windows.append(window)
    losses = [finish(HostWindow.fetch(window))["loss_mean"] for window in windows]
    assert counters(report) == StepReport(30, 0, 0, 0)
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    mean = state.mutable_variables["batch_stats"]["BatchNorm_0"]["mean"]
    assert (mean != before.mutable_variables["batch_stats"]["BatchNorm_0"]["mean"]).any()
