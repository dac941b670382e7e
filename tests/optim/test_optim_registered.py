"""Can a config name an optimizer and a schedule that the program has registered?"""

from typing import Any

import jax.numpy as jnp
import optax
import pytest

from xtrainer.config import Config, check_configs
from xtrainer.errors import ConfigError
from xtrainer.optim import OptimizerConfig, SchedulerConfig, build_optimizer, build_schedule
from xtrainer.registry import optimizers, register_optimizer, register_schedule, schedules


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizers, "_entries", {})
    monkeypatch.setattr(schedules, "_entries", {})

    @register_optimizer("signed")
    def signed(learning_rate: Any, scale: float = 1.0) -> optax.GradientTransformation:
        return optax.chain(
            optax.scale_by_sign(), optax.scale(scale), optax.scale_by_learning_rate(learning_rate)
        )

    @register_schedule("inverse")
    def inverse(peak: float) -> optax.Schedule:
        return lambda step: peak / (1 + step)


def update(config: OptimizerConfig, params: float = 2.0) -> float:
    transform, _ = build_optimizer(config)
    tree = {"w": jnp.full((), params), "other": jnp.zeros(())}
    gradients = {"w": jnp.full((), 0.3), "other": jnp.zeros(())}
    updates, _ = transform.update(gradients, transform.init(tree), tree)
    return float(updates["w"])


def test_a_registered_optimizer_gets_the_schedule_and_its_arguments() -> None:
    rate = SchedulerConfig(name="inverse", kwargs={"peak": 0.5})
    config = OptimizerConfig(name="signed", scheduler=rate, kwargs={"scale": 3.0})
    check_configs(optimizer=config)
    assert update(config) == pytest.approx(-1.5)


def test_clipping_decay_and_freezing_apply_to_it() -> None:
    rate = SchedulerConfig(lr=0.1)
    decayed = OptimizerConfig(name="signed", scheduler=rate, weight_decay=0.5)
    assert update(decayed) == pytest.approx(-0.1 - 0.1 * 0.5 * 2.0)
    assert update(OptimizerConfig(name="signed", scheduler=rate, freeze=("w",))) == 0


def test_warmup_and_cooldown_are_joined_to_a_registered_schedule() -> None:
    config = SchedulerConfig(
        name="inverse", kwargs={"peak": 1.0}, warmup_steps=2, cooldown_steps=2, decay_steps=6
    )
    rates = [float(build_schedule(config)(step)) for step in range(7)]
    assert rates == pytest.approx([0, 0.5, 1, 0.5, 1 / 3, 1 / 6, 0])


def test_a_saved_config_refers_to_them_by_name() -> None:
    config = OptimizerConfig(
        name="signed", scheduler=SchedulerConfig(name="inverse", kwargs={"peak": 1.0})
    )
    assert Config.from_dict(OptimizerConfig, config.to_dict()) == config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (OptimizerConfig(name="sinned"), "name: found 'sinned'. Did you mean 'signed'?"),
        (SchedulerConfig(name="invers"), "name: found 'invers'. Did you mean 'inverse'?"),
        (OptimizerConfig(name="signed", kwargs={"scala": 1}), "signed has no such argument. Did"),
        (OptimizerConfig(name="signed", momentum=0.9), "signed does not read .* into kwargs"),
        (SchedulerConfig(name="inverse"), "kwargs: inverse needs a value for peak"),
        (SchedulerConfig(name="inverse", lr=0.3, kwargs={"peak": 1}), "lr: found 0.3, which inv"),
    ],
)
def test_a_mistake_is_named(config: Config, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_configs(it=config)


def test_a_function_that_takes_no_learning_rate_is_no_optimizer() -> None:
    register_optimizer("rateless")(lambda lr: optax.sgd(lr))
    with pytest.raises(ConfigError, match="rateless must take an argument learning_rate"):
        check_configs(it=OptimizerConfig(name="rateless", kwargs={"lr": 0.1}))


def test_a_function_may_take_any_arguments() -> None:
    register_optimizer("anything")(lambda **kwargs: optax.sgd(kwargs["learning_rate"] * 1.0))
    register_schedule("flat")(lambda **kwargs: lambda step: kwargs["rate"])
    rate = SchedulerConfig(name="flat", kwargs={"rate": 0.25})
    check_configs(it=OptimizerConfig(name="anything", scheduler=rate, kwargs={"more": 1}))
    assert build_schedule(rate)(3) == 0.25


@pytest.mark.parametrize("config", [OptimizerConfig(), SchedulerConfig()])
def test_a_name_of_xtrainer_cannot_be_taken(config: OptimizerConfig | SchedulerConfig) -> None:
    register_optimizer("adamw")(optax.sgd)
    register_schedule("constant")(optax.constant_schedule)
    kind = "optimizer" if isinstance(config, OptimizerConfig) else "schedule"
    with pytest.raises(ConfigError, match=f"is a {kind} of xtrainer and was registered too"):
        check_configs(it=config)


@pytest.mark.parametrize("register", [register_optimizer, register_schedule])
def test_a_name_of_optax_cannot_be_taken(register: Any) -> None:
    with pytest.raises(ConfigError, match="Found the .* name .optax.adam.; names"):
        register("optax.adam")
