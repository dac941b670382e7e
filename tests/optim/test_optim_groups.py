"""Groups of parameters with rates of their own: against Optax, in logs and tables, mistakes."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import probes
import pytest
import zoo

import xtrainer as xt
from xtrainer.config import Config
from xtrainer.errors import ConfigError
from xtrainer.optim import (
    OptimizerConfig,
    ParamGroupConfig,
    SchedulerConfig,
    build_optimizer,
    build_schedules,
    decayed_params,
    label_params,
)
from xtrainer.parallel import state_shardings
from xtrainer.state import TrainState
from xtrainer.tree import flatten_with_paths

PARAMS = {
    "embed": jnp.linspace(-1.0, 1.0, 6).reshape(3, 2),
    "dense": {"kernel": jnp.linspace(0.5, 2.0, 4).reshape(2, 2), "bias": jnp.ones(2)},
    "head": {"kernel": jnp.linspace(-2.0, 2.0, 4).reshape(2, 2), "bias": jnp.full(2, 0.5)},
}
FALLING = SchedulerConfig(name="linear", lr=0.05, decay_steps=10)
GROUPS = (
    ParamGroupConfig(name="biases", params=("*/bias",), weight_decay=0.0),
    ParamGroupConfig(name="head", params=("head/*",), scheduler=FALLING, weight_decay=0.3),
    ParamGroupConfig(name="slow", params=("embed",), lr_factor=0.1),
)
LABELS = {
    "embed": "slow",
    "dense": {"kernel": "rest", "bias": "biases"},
    "head": {"kernel": "head", "bias": "biases"},  # the first that names it
}
BASE = {"scheduler": SchedulerConfig(lr=0.02), "weight_decay": 0.1, "groups": GROUPS}
RATES = {"rest": 0.02, "biases": 0.02, "slow": 0.002, "head": optax.linear_schedule(0.05, 0.0, 10)}
DECAYS = {"rest": 0.1, "biases": 0.0, "slow": 0.1, "head": 0.3}


def gradient(number: int):
    random = np.random.default_rng(number)
    return jax.tree.map(lambda x: random.normal(size=x.shape).astype(np.float32), PARAMS)


def train(optimizer, steps: int = 10):
    @jax.jit
    def step(params, state, gradient):
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, optimizer.init(PARAMS)
    for number in range(steps):
        params, state = step(params, state, gradient(number))
    return params, state


def test_the_first_group_that_names_a_parameter_has_it() -> None:
    assert label_params(GROUPS, PARAMS) == LABELS


@pytest.mark.parametrize(
    ("fields", "factory"),
    [
        ({"name": "adamw"}, optax.adamw),
        ({"name": "lion", "beta2": 0.99}, optax.lion),
        ({"name": "optax.adamw"}, optax.adamw),
        ({"name": "optax.lion"}, optax.lion),
        (
            {"name": "sgd", "momentum": 0.9},
            lambda rate, weight_decay: optax.chain(
                optax.trace(0.9),
                optax.add_decayed_weights(weight_decay),
                optax.scale_by_learning_rate(rate),
            ),
        ),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_ten_steps_equal_a_multi_transform_of_optax(fields: dict, factory) -> None:
    config = OptimizerConfig(**BASE, **fields, grad_clip_norm=1.0)
    own = {name: factory(RATES[name], weight_decay=DECAYS[name]) for name in RATES}
    theirs = optax.chain(optax.clip_by_global_norm(1.0), optax.multi_transform(own, LABELS))
    found, expected = train(build_optimizer(config).transform)[0], train(theirs)[0]
    close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7)  # noqa: E731
    jax.tree.map(close, found, expected)


def test_groups_do_not_move_the_state_of_a_named_optimizer() -> None:
    config = OptimizerConfig(**BASE)
    states = [
        build_optimizer(one).transform.init(PARAMS)
        for one in (config, dataclasses.replace(config, groups=()))
    ]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])


def test_moments_of_an_optax_optimizer_are_laid_out_like_their_parameters() -> None:
    parallel = xt.ParallelConfig(fsdp_axis_size=8, fsdp_min_weight_size=1)
    params = {"embed": jnp.ones((16, 2)), "head": {"kernel": jnp.ones((8, 2))}}
    config = OptimizerConfig(name="optax.adamw", groups=GROUPS[1:])
    state = TrainState.create(params, build_optimizer(config).transform, jax.random.key(0))
    found = flatten_with_paths(state_shardings(state, xt.build_mesh(parallel), parallel).opt_state)
    moments = {path: place for path, place in found.items() if "/mu/" in path}
    assert {path.rsplit("/mu/")[1] for path in moments} == {"embed", "head/kernel"}
    assert not any(place.is_fully_replicated for place in moments.values())


def test_frozen_parameters_of_a_group_stay() -> None:
    config = OptimizerConfig(**BASE, freeze=("head/bias",))
    params, state = train(build_optimizer(config).transform, 2)
    np.testing.assert_array_equal(params["head"]["bias"], PARAMS["head"]["bias"])
    assert (params["dense"]["bias"] != PARAMS["dense"]["bias"]).all()
    assert not [path for path in flatten_with_paths(state) if path.endswith("head/bias")]


def test_the_rates_of_all_groups_follow_the_batch() -> None:
    config = OptimizerConfig(**BASE, scale_lr_with=("workers",))
    rates = build_schedules(config, workers=4)
    found = {name: float(rate(5)) for name, rate in rates.items()}
    assert found == pytest.approx({"rest": 0.08, "biases": 0.08, "slow": 0.008, "head": 0.1})


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {"rest": True, "biases": False, "slow": True, "head": True}),
        ({"weight_decay": 0.0}, {"rest": False, "biases": False, "slow": False, "head": True}),
        (
            {"weight_decay_exclude": ("head",)},
            {"rest": True, "biases": False, "slow": True, "head": False},
        ),
    ],
)
def test_decayed_parameters_are_told(fields: dict, expected: dict) -> None:
    config = OptimizerConfig(**{**BASE, **fields})
    assert decayed_params(config, PARAMS) == jax.tree.map(lambda name: expected[name], LABELS)


def test_decay_of_a_group_alone_minds_the_patterns(caplog: pytest.LogCaptureFixture) -> None:
    config = OptimizerConfig(
        name="optax.sgd",
        groups=(ParamGroupConfig(name="head", params=("head/*",), weight_decay=0.5),),
        scheduler=SchedulerConfig(lr=0.1),
        weight_decay_exclude=("*/bias", "scael"),
    )
    transform = build_optimizer(config).transform
    with caplog.at_level(logging.WARNING, logger="xtrainer.optim.masks"):
        state = transform.init(PARAMS)
    assert "'scael'" in caplog.text
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = transform.update(zero, state, PARAMS)
    moved = {path for path, u in flatten_with_paths(updates).items() if (u != 0).any()}
    assert moved == {"head/kernel"}
    np.testing.assert_allclose(updates["head"]["kernel"], -0.05 * PARAMS["head"]["kernel"])


def test_a_config_with_groups_comes_back_from_json() -> None:
    config = OptimizerConfig(**BASE)
    assert Config.from_dict(OptimizerConfig, config.to_dict()) == config


def group(**fields) -> ParamGroupConfig:
    return ParamGroupConfig(**{"name": "one", "params": ("head/*",), **fields})


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ((group(), group()), r"groups: found several named 'one'"),
        ((group(name="rest"),), r"groups\[0\]\.name: found 'rest'"),
        ((group(name="a/b"),), r"groups\[0\]\.name: found 'a/b'"),
        ((group(params=()),), r"groups\[0\]\.params: found no pattern"),
        ((group(params=("(",)),), r"groups\[0\]\.params: found '\('"),
        ((group(lr_factor=0.0),), r"groups\[0\]\.lr_factor: found 0\.0.*freeze"),
        ((group(weight_decay=-1.0),), r"groups\[0\]\.weight_decay: found -1\.0"),
        ((group(scheduler=SchedulerConfig(lr=0.0)),), r"groups\[0\]\.scheduler\.lr: found 0\.0"),
    ],
)
def test_a_mistake_is_named(groups, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_optimizer(OptimizerConfig(groups=groups))


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ((group(params=("head/*", "haed")),), r"the patterns \['haed'\] of 'one' name no param"),
        ((group(), group(name="two")), r"'two' names are all in groups before it"),
        ((group(params=("embed",)),), r"'one' names are all frozen"),
    ],
)
def test_a_group_that_moves_nothing_is_refused_with_the_state(groups, message: str) -> None:
    transform = build_optimizer(OptimizerConfig(groups=groups, freeze=("embed",))).transform
    with pytest.raises(ConfigError, match=message):
        jax.eval_shape(transform.init, PARAMS)


def test_a_trainer_logs_the_rate_of_each_group_and_shows_it_in_its_table() -> None:
    head = ParamGroupConfig(name="head", params=("Dense_1/*",), scheduler=FALLING)
    trainer = zoo.make_trainer(
        optimizer=zoo.optimizer(lr=0.02, groups=(head,)),
        mesh=zoo.devices(1),
        callbacks=[xt.LearningRateMonitorConfig()],
        logger=xt.LoggerConfig(log_every_n_steps=1, log_tools=[]),
    )
    trainer.logger = probes.Memory()
    trainer.train_model(zoo.loader(48), num_epochs=1)
    assert trainer.logger.column("learning_rate") == pytest.approx([0.02] * 3)
    assert trainer.logger.column("learning_rate/head") == pytest.approx([0.05, 0.045, 0.04])
    lines = trainer.tabulate_params().splitlines()
    assert lines[0].split()[-1] == "group"
    ends = {line.split()[0]: line.split()[-1] for line in lines if "Dense" in line}
    assert ends == {
        "Dense_0/bias": "rest",
        "Dense_0/kernel": "rest",
        "Dense_1/bias": "head",
        "Dense_1/kernel": "head",
    }
    with pytest.raises(ConfigError, match=r"found no group 'haed'\. Did you mean 'head'"):
        trainer.learning_rate(1, group="haed")
    plain = zoo.make_trainer(mesh=zoo.devices(1))
    assert "group" not in plain.tabulate_params()
