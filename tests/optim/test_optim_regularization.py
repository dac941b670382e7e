"""Is the penalty what its formula says, for the parameters that it is meant for?"""

import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from xtrainer.config import Config, check_configs
from xtrainer.errors import ConfigError
from xtrainer.optim import (
    OptimizerConfig,
    RegularizationConfig,
    build_optimizer,
    regularization_fn,
    regularization_of,
)

PARAMS = {"dense": {"kernel": jnp.array([[3.0, -4.0], [0.0, 1.0]]), "bias": jnp.array([-2.0, 0.5])}}


def penalty(params: Any = PARAMS, **fields: Any) -> float:
    value = regularization_fn(RegularizationConfig(**fields))(params)
    assert (value.shape, value.dtype) == ((), jnp.float32)
    return float(value)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"type": "l1", "strength": 0.5}, 0.5 * 10.5),
        ({"type": "l2", "strength": 0.5}, 0.5 * 30.25),
        ({"type": "l1_l2", "strength": 0.5}, 0.5 * 10.5 + 0.5 * 30.25),
        ({"type": "l1_l2", "strength": 0.5, "l1_strength": 2.0}, 2.0 * 10.5 + 0.5 * 30.25),
        ({"type": "l1_l2", "l2_strength": 2.0}, 2.0 * 30.25),
        ({"strength": 0.5, "include": ("*/kernel",)}, 0.5 * 26.0),
        ({"strength": 0.5, "exclude": ("*/kernel",)}, 0.5 * 4.25),
        ({"strength": 0.5, "include": ("*/kernel",), "exclude": ("dense/*",)}, 0.0),
        ({}, 0.0),
    ],
)
def test_the_penalty_is_the_sum_of_its_formula(fields: Any, expected: float) -> None:
    assert penalty(**fields) == expected


def test_the_gradient_of_an_absolute_value_is_its_sign_and_0_at_0() -> None:
    fn = regularization_fn(RegularizationConfig(type="l1", strength=0.25))
    np.testing.assert_array_equal(
        jax.grad(fn)(PARAMS)["dense"]["kernel"], [[0.25, -0.25], [0.0, 0.25]]
    )


def test_squares_of_small_dtypes_are_summed_in_float32() -> None:
    assert penalty({"w": jnp.full(3, 300.0, jnp.float16)}, strength=1.0) == 270000.0
    assert penalty({"w": jnp.ones(4097, jnp.bfloat16)}, type="l1", strength=1.0) == 4097.0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"type": "l3"}, r"optimizer\.regularization\.type: found 'l3'"),
        ({"strength": -1.0}, r"regularization\.strength: found -1\.0, expected a finite number"),
        ({"strength": float("inf")}, r"strength: found inf, expected a finite number >= 0"),
        ({"type": "l1", "l1_strength": 0.1}, r"l1_strength: found 0\.1 with type='l1', which rea"),
        ({"type": "l1_l2", "l2_strength": -0.1}, r"l2_strength: found -0\.1, expected a finite"),
        ({"include": ("(",)}, r"include: found '\('"),
        ({"exclude": ("(",)}, r"exclude: found '\('"),
    ],
)
def test_a_mistake_is_named_once(fields: Any, message: str) -> None:
    config = OptimizerConfig(regularization=RegularizationConfig(**fields))
    with pytest.raises(ConfigError, match=message) as error:
        check_configs(optimizer=config)
    assert len(error.value.problems) == 1


def test_a_config_comes_back_from_json() -> None:
    config = OptimizerConfig(
        regularization=RegularizationConfig(type="l1_l2", l1_strength=0.1, exclude=("bias",))
    )
    assert Config.from_dict(OptimizerConfig, config.to_dict()) == config


def test_only_a_config_has_a_regularization() -> None:
    config = RegularizationConfig(strength=0.1)
    assert regularization_of(OptimizerConfig(regularization=config)) is config
    assert regularization_of(OptimizerConfig()) is None
    assert regularization_of(optax.sgd(0.1)) is None


@pytest.mark.parametrize(
    ("fields", "freeze"), [({"include": ("head",)}, ()), ({"exclude": ("bias",)}, ("*/kernel",))]
)
def test_patterns_that_leave_no_parameter_are_refused(fields: Any, freeze: Any) -> None:
    config = OptimizerConfig(regularization=RegularizationConfig(**fields), freeze=freeze)
    transform = build_optimizer(config).transform
    with pytest.raises(ConfigError, match=r"optimizer\.regularization: .*leave no parameter"):
        jax.eval_shape(transform.init, PARAMS)


def test_a_pattern_that_names_nothing_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    config = RegularizationConfig(exclude=("bias", "sclae"))
    transform = build_optimizer(OptimizerConfig(regularization=config)).transform
    with caplog.at_level(logging.WARNING, logger="xtrainer.optim.regularization"):
        jax.eval_shape(transform.init, PARAMS)
        transform.init(PARAMS)
    (record,) = caplog.records
    assert "name no parameter: 'sclae'. Paths look like 'dense/bias'" in record.getMessage()


def test_the_state_of_the_optimizer_is_the_same_with_it() -> None:
    plain, penalized = OptimizerConfig(), OptimizerConfig(regularization=RegularizationConfig())
    states = [build_optimizer(config).transform.init(PARAMS) for config in (plain, penalized)]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
