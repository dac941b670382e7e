"""Do frozen parameters stay, cost nothing, and leave the others alone?"""

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
    example_loss,
    make_data,
    make_state,
    on_devices,
)

import xtrainer as xt
from xtrainer.metrics import HostWindow, finish, global_norm
from xtrainer.parallel import ParallelConfig
from xtrainer.step import StepSettings, make_train_step
from xtrainer.step.gradients import make_gradient_fn
from xtrainer.tree import flatten_with_paths

ROWS = 16
FREEZE = ("Dense_0",)
CONFIG = xt.OptimizerConfig(
    scheduler=xt.SchedulerConfig(lr=0.1), weight_decay=0.1, grad_clip_norm=0.5, freeze=FREEZE
)
PARAMS = make_state().params
BATCH = make_data(ROWS)
ALL = jnp.ones(ROWS, bool)


def gradient(settings: StepSettings, params: Any = PARAMS, model: Any = None) -> Any:
    function = jax.jit(make_gradient_fn(example_loss, (model or Net()).apply, settings))
    return function(params, {}, BATCH, ALL, jax.random.key(0)).grads


def train(config: xt.OptimizerConfig, settings: StepSettings, steps: int = 3) -> Any:
    optimizer = xt.build_optimizer(config).transform
    state, window = make_state(Net(), optimizer), None
    step = jax.jit(make_train_step(example_loss, Net().apply, optimizer, settings))
    for index in range(steps):
        state, window, _ = step(state, make_data(ROWS, index), None, None)
    return state, window


def flops(freeze: tuple[str, ...], width: int = 64) -> float:
    """Returns the floating-point operations of a compiled step of a wide net."""
    optimizer = optax.identity()
    state = make_state(Net(width=width), optimizer)
    settings = StepSettings(freeze=freeze, log_param_norm=False)
    step = make_train_step(example_loss, Net(width=width).apply, optimizer, settings)
    return jax.jit(step).lower(state, BATCH).compile().cost_analysis()["flops"]


@pytest.mark.parametrize(("count", "scan"), [(1, True), (4, True), (4, False)])
def test_the_gradient_is_0_for_frozen_parameters_and_the_same_for_others(count, scan) -> None:
    settings = StepSettings(accumulate_steps=count, accumulate_scan=scan)
    whole = gradient(settings)
    part = gradient(dataclasses.replace(settings, freeze=FREEZE))
    assert_close(part["Dense_1"], whole["Dense_1"], 1e-6)
    assert_identical(part["Dense_0"], jax.tree.map(np.zeros_like, whole["Dense_0"]))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(whole["Dense_0"]))


def test_frozen_parameters_stay_bit_for_bit_while_others_move() -> None:
    state, _ = train(CONFIG, StepSettings(freeze=FREEZE))
    assert_identical(state.params["Dense_0"], PARAMS["Dense_0"])
    assert (np.asarray(state.params["Dense_1"]["kernel"]) != PARAMS["Dense_1"]["kernel"]).all()


def test_no_moments_are_kept_for_frozen_parameters() -> None:
    state, _ = train(CONFIG, StepSettings(freeze=FREEZE), steps=1)
    paths = list(flatten_with_paths(state.opt_state))
    assert not [path for path in paths if "Dense_0" in path]
    assert len([path for path in paths if "Dense_1" in path]) == 4


@pytest.mark.parametrize("count", [1, 4])
def test_the_gradient_norm_is_that_of_the_others(count: int) -> None:
    settings = StepSettings(freeze=FREEZE, accumulate_steps=count)
    _, window = train(CONFIG, settings, steps=1)
    expected = global_norm(gradient(StepSettings())["Dense_1"])
    metrics = finish(HostWindow.fetch(window))
    np.testing.assert_allclose(metrics["grad_norm_mean"], expected, rtol=1e-5)


def test_no_gradient_of_frozen_parameters_is_computed() -> None:
    # What is left: forward through both layers, and the gradient of the second layer's kernel.
    assert flops(FREEZE) < 0.6 * flops(())


def test_accumulation_keeps_no_sums_for_frozen_parameters() -> None:
    def carried(freeze: tuple[str, ...]) -> int:
        settings = StepSettings(accumulate_steps=4, freeze=freeze)
        function = make_gradient_fn(example_loss, Net().apply, settings)
        jaxpr = jax.make_jaxpr(function)(PARAMS, {}, BATCH, ALL, jax.random.key(0))
        (scan,) = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "scan"]
        return scan.params["num_carry"]

    assert carried(()) - carried(FREEZE) == len(jax.tree.leaves(PARAMS["Dense_0"]))


def test_a_gradient_that_is_not_finite_does_no_harm_in_frozen_parameters() -> None:
    def loss(params: Any, apply_fn: Any, batch: Any, rng: Any, train: bool = True) -> Any:
        bad = jnp.sqrt(params["Dense_0"]["bias"] * 0.0).sum()  # 0, with the derivative NaN
        values, rest = example_loss(params, apply_fn, batch, rng, train)
        return values + bad, rest

    optimizer = xt.build_optimizer(CONFIG).transform
    step = jax.jit(make_train_step(loss, Net().apply, optimizer, StepSettings(freeze=FREEZE)))
    state, _, _ = step(make_state(Net(), optimizer), BATCH)
    assert int(state.guard.skipped) == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


def test_sharded_parameters_may_be_frozen() -> None:
    config = ParallelConfig(data_axis_size=2, fsdp_axis_size=4, fsdp_min_weight_size=1)
    state, layout = on_devices(make_state(), config)
    shardings = jax.tree.map(lambda x: x.sharding, state.params)
    settings = StepSettings(
        layout=layout, param_shardings=shardings, freeze=FREEZE, accumulate_steps=2
    )
    assert_close(gradient(settings, state.params), gradient(StepSettings(freeze=FREEZE)), 1e-5)


@pytest.fixture(scope="module")
def trainer() -> Any:
    trainer = zoo.make_trainer(optimizer=CONFIG, mesh=zoo.devices(2))
    trainer.start = zoo.host(trainer.state.params)
    trainer.train_model(zoo.loader(32), None, num_epochs=1)
    return trainer


def test_a_trainer_freezes_what_its_config_says(trainer: Any) -> None:
    zoo.assert_same(trainer.state.params["Dense_0"], trainer.start["Dense_0"])
    moved = zoo.host(trainer.state.params["Dense_1"]["kernel"])
    assert (moved != trainer.start["Dense_1"]["kernel"]).all()
    assert trainer.step_settings().freeze == FREEZE


def test_the_table_of_a_trainer_shows_what_is_frozen_and_what_decays(trainer: Any) -> None:
    lines = [line.split() for line in trainer.tabulate_params().splitlines()]
    answers = {cells[0]: cells[-2:] for cells in lines if cells and "/" in cells[0]}
    assert answers == {
        "Dense_0/bias": ["no", "yes"],
        "Dense_0/kernel": ["no", "yes"],
        "Dense_1/bias": ["yes", "no"],
        "Dense_1/kernel": ["yes", "no"],
    }


def test_a_pattern_that_freezes_nothing_stops_the_trainer() -> None:
    config = dataclasses.replace(CONFIG, freeze=("Dense_7",))
    with pytest.raises(xt.ConfigError, match=r"'Dense_7'.*name no parameter"):
        zoo.make_trainer(optimizer=config, mesh=zoo.devices(1))
