"""The learning rate, compared with NumPy at every step, and the mistakes a config can hold."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xtrainer.config import Config, check_configs
from xtrainer.errors import ConfigError
from xtrainer.optim import SchedulerConfig, build_schedule


def expected_rates(config: SchedulerConfig, end: float, steps: np.ndarray) -> np.ndarray:
    """The definition in NumPy, step by step."""
    lr, warmup, cooldown = config.lr, config.warmup_steps, config.cooldown_steps
    length = config.decay_steps - warmup - cooldown

    def main(step: int) -> float:
        part = min(step / length, 1.0) if length else 0.0
        return {
            "constant": lr,
            "linear": lr + (end - lr) * part,
            "cosine_decay": end + (lr - end) * 0.5 * (1 + np.cos(np.pi * part)),
            "exponential_decay": lr * (end / lr) ** part if end else 0.0,
        }[config.name]

    def rate(step: int) -> float:
        if step < warmup:
            return lr * step / warmup
        if cooldown and step >= config.decay_steps - cooldown:
            part = min((step - config.decay_steps + cooldown) / cooldown, 1.0)
            return main(length) + (config.cooldown_lr - main(length)) * part
        return main(step - warmup)

    return np.array([rate(int(step)) for step in steps])


@pytest.mark.parametrize("name", ["constant", "linear", "cosine_decay", "exponential_decay"])
@pytest.mark.parametrize("warmup", [0, 7])
@pytest.mark.parametrize("cooldown", [0, 9])
def test_every_step_equals_numpy(name: str, warmup: int, cooldown: int) -> None:
    config = SchedulerConfig(
        name=name,
        lr=3e-3,
        end_lr_factor=0.1,
        decay_steps=40,
        warmup_steps=warmup,
        cooldown_steps=cooldown,
        cooldown_lr=1e-5,
    )
    steps = np.arange(60)
    rates = jax.jit(build_schedule(config))(steps)
    np.testing.assert_allclose(rates, expected_rates(config, 3e-4, steps), rtol=2e-6, atol=1e-10)


def test_boundary_values_are_exact() -> None:
    config = SchedulerConfig(
        name="cosine_decay",
        lr=0.5,
        end_lr=0.125,
        decay_steps=100,
        warmup_steps=10,
        cooldown_steps=20,
        cooldown_lr=0.0625,
    )
    rates = build_schedule(config)(np.array([0, 5, 10, 45, 80, 90, 100, 1000]))
    expected = [0.0, 0.25, 0.5, 0.3125, 0.125, 0.09375, 0.0625, 0.0625]
    np.testing.assert_allclose(rates, np.array(expected, np.float32), rtol=0, atol=3e-8)


@settings(max_examples=20, deadline=None)
@given(
    name=st.sampled_from(["constant", "linear", "cosine_decay", "exponential_decay"]),
    warmup=st.integers(0, 12),
    length=st.integers(0, 12),
    cooldown=st.integers(0, 12),
    lr=st.floats(1e-6, 10.0),
)
def test_any_lengths_equal_numpy(
    name: str, warmup: int, length: int, cooldown: int, lr: float
) -> None:
    config = SchedulerConfig(
        name=name,
        lr=lr,
        end_lr_factor=0.25,
        decay_steps=max(warmup + length + cooldown, 1),
        warmup_steps=warmup,
        cooldown_steps=cooldown,
    )
    steps = np.arange(45)
    rates = build_schedule(config)(steps)
    expected = expected_rates(config, 0.25 * lr, steps)
    np.testing.assert_allclose(rates, expected, rtol=1e-5, atol=1e-7 * lr)


def test_a_decay_without_end_goes_to_zero() -> None:
    rate = build_schedule(SchedulerConfig(name="cosine_decay", decay_steps=10))
    assert float(rate(10)) == 0.0


def test_end_lr_is_absolute() -> None:
    rate = build_schedule(SchedulerConfig(name="linear", lr=0.5, end_lr=0.25, decay_steps=10))
    assert float(rate(10)) == 0.25


def test_the_default_is_constant() -> None:
    assert float(build_schedule(SchedulerConfig())(12345)) == np.float32(1e-3)


def test_the_rate_has_the_shape_of_the_step() -> None:
    rate = build_schedule(SchedulerConfig())
    assert rate(jnp.zeros((), jnp.int32)).shape == ()
    assert rate(jnp.zeros((2, 3), jnp.int32)).shape == (2, 3)
    assert rate(3).dtype == jnp.float32


def test_a_schedule_of_optax_is_used_as_it_is() -> None:
    kwargs = {"init_value": 0.5, "boundaries_and_scales": {3: 0.5, 6: 0.1}}
    rate = build_schedule(SchedulerConfig(name="optax.piecewise_constant_schedule", kwargs=kwargs))
    steps = np.arange(10)
    expected = [optax.piecewise_constant_schedule(**kwargs)(step) for step in steps]
    np.testing.assert_allclose(rate(steps), expected, rtol=1e-6)


def test_a_schedule_of_optax_takes_warmup_and_cooldown() -> None:
    config = SchedulerConfig(
        name="optax.polynomial_schedule",
        kwargs={"init_value": 1.0, "end_value": 0.5, "power": 2, "transition_steps": 6},
        warmup_steps=4,
        cooldown_steps=2,
        decay_steps=12,
    )
    rates = build_schedule(config)(np.array([0, 2, 4, 7, 10, 11, 12]))
    expected = [0.0, 0.5, 1.0, 0.5 + 0.5 * 0.25, 0.5, 0.25, 0.0]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


def test_a_config_comes_back_from_json() -> None:
    config = SchedulerConfig(
        name="optax.piecewise_constant_schedule",
        kwargs={"init_value": 0.5, "boundaries_and_scales": {3: 0.5}},
    )
    assert Config.from_dict(SchedulerConfig, config.to_dict()) == config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "cosin", "decay_steps": 9}, r"name: found 'cosin'\. Did you mean 'cosine_decay'"),
        ({"name": "Linear"}, r"Did you mean 'linear'"),
        ({"name": "optax.linear_shedule"}, r"Did you mean 'optax.linear_schedule'"),
        ({"name": "optax.join_schedules"}, r"name: found 'optax.join_schedules'"),
        ({"lr": 0.0}, r"lr: found 0\.0, expected a finite number > 0"),
        ({"lr": -1.0}, r"lr: found -1\.0"),
        ({"lr": float("nan")}, r"lr: found nan"),
        ({"end_lr": -1.0}, r"end_lr: found -1\.0"),
        ({"cooldown_lr": -1.0}, r"cooldown_lr: found -1\.0"),
        ({"end_lr": 0.1, "end_lr_factor": 0.1}, r"end_lr: .*Give one of them"),
        ({"warmup_steps": -3}, r"warmup_steps: found -3, expected a number of steps >= 0"),
        ({"cooldown_steps": -3}, r"cooldown_steps: found -3"),
        ({"decay_steps": -3}, r"decay_steps: found -3"),
        ({"cooldown_steps": 3}, r"decay_steps: found 0; a cooldown needs"),
        ({"name": "linear"}, r"decay_steps: found 0; linear needs"),
        (
            {"decay_steps": 5, "warmup_steps": 3, "cooldown_steps": 3},
            r"decay_steps: found 5, expected at least .* = 3 \+ 3",
        ),
        ({"name": "exponential_decay", "decay_steps": 5}, r"exponential decay never reaches 0"),
        ({"kwargs": {"value": 1.0}}, r"kwargs: found .*expected none"),
        ({"name": "optax.constant_schedule"}, r"needs a value for value"),
        (
            {"name": "optax.constant_schedule", "kwargs": {"value": 1.0, "valeu": 1.0}},
            r"kwargs\.valeu: .* has no such argument\. Did you mean 'value'",
        ),
        (
            {"name": "optax.constant_schedule", "kwargs": {"value": 1.0}, "lr": 0.5},
            r"lr: found 0\.5, which optax.constant_schedule does not read",
        ),
        ({"warmup_steps": "3"}, r"warmup_steps: found '3' \(str\), expected a whole number"),
    ],
)
def test_a_mistake_is_named(fields: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_schedule(SchedulerConfig(**fields))


def test_arguments_that_optax_refuses_are_named() -> None:
    kwargs = {"init_value": 1.0, "decay_steps": 0}
    with pytest.raises(ConfigError, match="scheduler.kwargs: .*positive decay_steps"):
        build_schedule(SchedulerConfig(name="optax.cosine_decay_schedule", kwargs=kwargs))


def test_all_mistakes_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        check_configs(scheduler=SchedulerConfig(name="no", lr=-1.0, warmup_steps=-1))
    assert len(caught.value.problems) == 3
