"""The whole optimizer: order of its parts, weight decay under every name, state, mistakes."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from xtrainer.config import Config
from xtrainer.errors import ConfigError
from xtrainer.optim import (
    OptimizerConfig,
    SchedulerConfig,
    build_optimizer,
    decayed_params,
    frozen_patterns,
)
from xtrainer.optim.optimizers import OPTIMIZERS
from xtrainer.tree import flatten_with_paths

PARAMS = {"dense": {"kernel": jnp.full((4, 3), 2.0), "bias": jnp.full(3, 2.0)}}
ZERO = jax.tree.map(jnp.zeros_like, PARAMS)
LR = SchedulerConfig(lr=0.5)


def one_step(config: OptimizerConfig, gradient, params=PARAMS):
    transform = build_optimizer(config).transform
    updates, state = transform.update(gradient, transform.init(params), params)
    return optax.apply_updates(params, updates), state


@pytest.mark.parametrize(
    "name", [*OPTIMIZERS, "optax.lion", "optax.adamw", "optax.sgd", "optax.lamb"]
)
def test_weight_decay_shrinks_weights_by_lr_times_decay(name: str) -> None:
    config = OptimizerConfig(name=name, scheduler=LR, weight_decay=0.1)
    new, _ = one_step(config, ZERO)
    for leaf in jax.tree.leaves(new):
        np.testing.assert_allclose(leaf, 2.0 * (1 - 0.5 * 0.1), rtol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adam", "optax.lion"])
def test_weight_decay_is_apart_from_the_gradient(name: str) -> None:
    gradient = jax.tree.map(jnp.ones_like, PARAMS)
    kwargs = {"weight_decay": 0.0} if name == "optax.lion" else {}
    plain, _ = one_step(OptimizerConfig(name=name, scheduler=LR, kwargs=kwargs), gradient)
    decayed, _ = one_step(OptimizerConfig(name=name, scheduler=LR, weight_decay=0.1), gradient)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x - y, 0.1, rtol=1e-5),
        plain,
        decayed,
    )


@pytest.mark.parametrize("name", ["adamw", "optax.adamw"])
def test_excluded_parameters_do_not_decay(name: str) -> None:
    config = OptimizerConfig(
        name=name, scheduler=LR, weight_decay=0.1, weight_decay_exclude=("bias|scale",)
    )
    new, _ = one_step(config, ZERO)
    np.testing.assert_array_equal(new["dense"]["bias"], PARAMS["dense"]["bias"])
    np.testing.assert_allclose(new["dense"]["kernel"], 1.9, rtol=1e-6)


def test_only_included_parameters_decay() -> None:
    config = OptimizerConfig(scheduler=LR, weight_decay=0.1, weight_decay_include=("*/kernel",))
    new, _ = one_step(config, ZERO)
    np.testing.assert_array_equal(new["dense"]["bias"], PARAMS["dense"]["bias"])
    np.testing.assert_allclose(new["dense"]["kernel"], 1.9, rtol=1e-6)


def test_an_optax_optimizer_keeps_its_own_decay_where_the_config_gives_none() -> None:
    new, _ = one_step(OptimizerConfig(name="optax.lion", scheduler=LR), ZERO)
    np.testing.assert_allclose(new["dense"]["bias"], 2.0 * (1 - 0.5 * 1e-3), rtol=1e-6)


def test_an_optax_optimizer_gets_kwargs_and_the_schedule() -> None:
    scheduler = SchedulerConfig(name="linear", lr=0.1, decay_steps=4)
    built = build_optimizer(
        OptimizerConfig(name="optax.lion", scheduler=scheduler, kwargs={"b1": 0.95})
    )
    theirs = optax.lion(optax.linear_schedule(0.1, 0.0, 4), b1=0.95)
    gradient = jax.tree.map(lambda x: jnp.sin(jnp.arange(x.size * 1.0)).reshape(x.shape), PARAMS)
    states = built.transform.init(PARAMS), theirs.init(PARAMS)
    for _ in range(4):
        ours, ours_state = built.transform.update(gradient, states[0], PARAMS)
        expected, expected_state = theirs.update(gradient, states[1], PARAMS)
        states = ours_state, expected_state
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), ours, expected)


def test_gradients_are_clipped_by_norm_and_then_by_value() -> None:
    config = OptimizerConfig(name="sgd", scheduler=LR, grad_clip_norm=5.0, grad_clip_value=3.5)
    params = {"w": jnp.zeros(2)}
    new, _ = one_step(config, {"w": jnp.array([30.0, 40.0])}, params)
    # To norm 5: (3, 4); to value 3.5: (3, 3.5). The other order would give (3.5, 3.5).
    np.testing.assert_allclose(new["w"], [-1.5, -1.75], rtol=1e-6)


def test_weight_decay_is_not_clipped() -> None:
    config = OptimizerConfig(
        name="sgd", scheduler=LR, weight_decay=0.5, grad_clip_norm=1e-3, grad_clip_value=1e-3
    )
    new, _ = one_step(config, ZERO)
    np.testing.assert_allclose(new["dense"]["bias"], 1.5, rtol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "optax.adamw"])
def test_moments_are_found_by_the_path_of_their_parameter(name: str) -> None:
    state = build_optimizer(OptimizerConfig(name=name, grad_clip_norm=1.0)).transform.init(PARAMS)
    paths = flatten_with_paths({"opt_state": state})
    prefix = "opt_state/optimizer" if name == "adamw" else "opt_state/optimizer/0"
    assert paths[f"{prefix}/mu/dense/kernel"].shape == (4, 3)
    assert f"{prefix}/nu/dense/bias" in paths


def test_clipping_does_not_move_the_state() -> None:
    structures = [
        jax.tree.structure(
            build_optimizer(OptimizerConfig(grad_clip_norm=clip)).transform.init(PARAMS)
        )
        for clip in (None, 1.0)
    ]
    assert structures[0] == structures[1]


def test_moments_have_the_dtype_of_their_parameter() -> None:
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    state = build_optimizer(OptimizerConfig()).transform.init(params)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(state["optimizer"].mu))


@pytest.mark.parametrize("name", [*OPTIMIZERS, "optax.lion"])
def test_state_shapes_are_known_without_arrays(name: str) -> None:
    transform = build_optimizer(OptimizerConfig(name=name, weight_decay=0.1)).transform
    shapes = jax.eval_shape(transform.init, PARAMS)
    state = transform.init(PARAMS)
    assert jax.tree.structure(shapes) == jax.tree.structure(state)
    assert [x.shape for x in jax.tree.leaves(shapes)] == [x.shape for x in jax.tree.leaves(state)]


@pytest.mark.parametrize("name", ["adamw", "lamb", "optax.lion"])
def test_parameters_and_state_can_be_donated(name: str) -> None:
    config = OptimizerConfig(name=name, scheduler=LR, weight_decay=0.1, grad_clip_norm=1.0)
    transform = build_optimizer(config).transform

    def step(params, state):
        updates, state = transform.update(params, state, params)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.copy, PARAMS)
    state = jax.jit(transform.init)(params)
    old = jax.tree.leaves((params, state))
    for _ in range(2):
        params, state = jax.jit(step, donate_argnums=(0, 1))(params, state)
    assert all(leaf.is_deleted() for leaf in old)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_the_schedule_counts_updates_from_zero() -> None:
    transform, schedule = build_optimizer(OptimizerConfig(name="sgd", scheduler=LR))
    state = transform.init(PARAMS)
    assert schedule is not None and float(schedule(0)) == 0.5
    _, state = transform.update(ZERO, state, PARAMS)
    assert int(state["learning_rate"].count) == 1


def test_a_ready_transformation_is_passed_through() -> None:
    ready = optax.sgd(0.1)
    built = build_optimizer(ready)
    assert built.transform is ready
    assert built.schedule is None


def test_something_else_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"optimizer: found 'adam' \(str\), expected an Optimizer"
    ):
        build_optimizer("adam")  # type: ignore[arg-type]


def test_a_pattern_that_names_nothing_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    config = OptimizerConfig(weight_decay=0.1, weight_decay_exclude=("bias", "sclae"))
    transform = build_optimizer(config).transform
    with caplog.at_level(logging.WARNING, logger="xtrainer.optim.masks"):
        jax.eval_shape(transform.init, PARAMS)
        transform.init(PARAMS)
    (record,) = caplog.records
    assert "name no parameter: 'sclae'. Paths look like 'dense/bias'" in record.getMessage()


def test_patterns_that_name_something_are_silent(caplog: pytest.LogCaptureFixture) -> None:
    config = OptimizerConfig(weight_decay=0.1, weight_decay_exclude=("bias",))
    build_optimizer(config).transform.init(PARAMS)
    assert not caplog.records


FROZEN = ("*/bias",)


@pytest.mark.parametrize(
    "name", [*OPTIMIZERS, "optax.lion", "optax.adamw", "optax.lamb", "optax.adafactor"]
)
def test_a_frozen_parameter_stays_under_every_name(name: str) -> None:
    config = OptimizerConfig(name=name, scheduler=LR, weight_decay=0.1, freeze=FROZEN)
    new, state = one_step(config, PARAMS)
    np.testing.assert_array_equal(new["dense"]["bias"], PARAMS["dense"]["bias"])
    assert (new["dense"]["kernel"] != PARAMS["dense"]["kernel"]).all()
    assert not [path for path in flatten_with_paths(state) if path.endswith("bias")]


def test_freezing_does_not_change_the_rest() -> None:
    gradient = {"dense": {"kernel": PARAMS["dense"]["kernel"] / 3, "bias": ZERO["dense"]["bias"]}}
    config = OptimizerConfig(scheduler=LR, weight_decay=0.1, grad_clip_norm=1.0)
    plain, _ = one_step(config, gradient)
    frozen, _ = one_step(dataclasses.replace(config, freeze=FROZEN), gradient)
    np.testing.assert_array_equal(frozen["dense"]["kernel"], plain["dense"]["kernel"])
    assert (plain["dense"]["bias"] != frozen["dense"]["bias"]).all()


def test_moments_keep_their_paths_beside_frozen_parameters() -> None:
    state = build_optimizer(OptimizerConfig(freeze=FROZEN)).transform.init(PARAMS)
    moments = [path for path in flatten_with_paths(state) if "dense" in path]
    assert moments == ["optimizer/mu/dense/kernel", "optimizer/nu/dense/kernel"]


def test_a_frozen_pattern_that_names_nothing_is_refused_with_the_state() -> None:
    transform = build_optimizer(OptimizerConfig(freeze=("head",))).transform
    with pytest.raises(ConfigError, match=r"optimizer\.freeze: the patterns \['head'\] name no"):
        jax.eval_shape(transform.init, PARAMS)


def test_patterns_are_frozen_by_a_config_only() -> None:
    assert frozen_patterns(OptimizerConfig(freeze=FROZEN)) == FROZEN
    assert frozen_patterns(optax.sgd(0.1)) == ()


@pytest.mark.parametrize(
    ("fields", "decayed"),
    [
        ({}, {"kernel": False, "bias": False}),
        ({"weight_decay": 0.1}, {"kernel": True, "bias": True}),
        ({"weight_decay": 0.1, "freeze": FROZEN}, {"kernel": True, "bias": False}),
        ({"weight_decay": 0.1, "weight_decay_include": FROZEN}, {"kernel": False, "bias": True}),
        ({"name": "optax.lion", "weight_decay": 0.1}, {"kernel": True, "bias": True}),
    ],
)
def test_decayed_parameters_are_told(fields: dict, decayed: dict) -> None:
    assert decayed_params(OptimizerConfig(**fields), PARAMS) == {"dense": decayed}


@pytest.mark.parametrize("config", [OptimizerConfig(name="optax.lion"), optax.sgd(0.1)])
def test_decay_that_others_decide_is_not_known(config) -> None:
    assert decayed_params(config, PARAMS) is None


def test_a_config_comes_back_from_json() -> None:
    config = OptimizerConfig(
        name="optax.lion",
        scheduler=SchedulerConfig(name="linear", decay_steps=3),
        weight_decay_exclude=("bias", "*/scale"),
        weight_decay=0.1,
        freeze=("embed",),
        kwargs={"b1": 0.95},
    )
    assert Config.from_dict(OptimizerConfig, config.to_dict()) == config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "adagrd"}, r"optimizer\.name: found 'adagrd'\. Did you mean 'adagrad'"),
        ({"name": "optax.lyon"}, r"Did you mean 'optax\.lion'"),
        ({"beta1": 1.0}, r"beta1: found 1\.0, expected a number >= 0 and < 1"),
        ({"beta2": -0.1}, r"beta2: found -0\.1"),
        ({"name": "sgd", "momentum": 1.5}, r"momentum: found 1\.5"),
        ({"eps": 0.0}, r"eps: found 0\.0, expected a number > 0"),
        ({"weight_decay": -0.1}, r"weight_decay: found -0\.1"),
        ({"weight_decay": float("nan")}, r"weight_decay: found nan"),
        ({"grad_clip_norm": 0.0}, r"grad_clip_norm: found 0\.0, expected a number > 0"),
        ({"grad_clip_value": -1.0}, r"grad_clip_value: found -1\.0"),
        ({"weight_decay_exclude": ("(",)}, r"weight_decay_exclude: found '\('"),
        ({"freeze": ("(",)}, r"freeze: found '\('"),
        ({"momentum": 0.9}, r"momentum: found 0\.9, which adamw does not read"),
        ({"kwargs": {"b1": 0.9}}, r"kwargs: found .*expected none"),
        ({"name": "optax.lion", "kwargs": {"bb": 1}}, r"kwargs\.bb: optax.lion has no such"),
        ({"name": "optax.lion", "kwargs": {"learning_rate": 1}}, r"kwargs\.learning_rate"),
        (
            {"name": "optax.lion", "weight_decay": 0.1, "kwargs": {"weight_decay": 0.1}},
            r"weight_decay: found 0\.1 beside kwargs\.weight_decay=0\.1\. Give one",
        ),
        (
            {"name": "optax.lion", "weight_decay_exclude": ("bias",)},
            r"weight_decay: found 0 with patterns",
        ),
        ({"scheduler": SchedulerConfig(lr=-1.0)}, r"optimizer\.scheduler\.lr: found -1\.0"),
        ({"weight_decay": "0.1"}, r"weight_decay: found '0\.1' \(str\), expected a number"),
    ],
)
def test_a_mistake_is_named(fields: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_optimizer(OptimizerConfig(**fields))


@pytest.mark.parametrize(
    ("name", "kwargs", "reason"),
    [
        ("optax.contrib.sophia", {}, "obj_fn"),
        ("optax.sm3", {}, "TypeError"),
        ("optax.lion", {"b1": "high"}, "TypeError"),
    ],
)
def test_an_optax_optimizer_that_cannot_work_is_refused(name, kwargs, reason) -> None:
    with pytest.raises(
        ConfigError, match=f"optimizer: {name} with kwargs=.* failed a trial.*{reason}"
    ):
        build_optimizer(OptimizerConfig(name=name, kwargs=kwargs))
