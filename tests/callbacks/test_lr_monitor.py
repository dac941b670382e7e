"""The learning rate in the logs is the one that moved the parameters."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
import probes
import pytest
import zoo

import xtrainer as xt
from xtrainer.loop import StopReason

STEPS = 12
SCHEDULE = xt.SchedulerConfig(name="linear", lr=1.0, decay_steps=STEPS)
"""A schedule of which every step has a rate of its own."""


class Scale(nn.Module):
    """One number, by which inputs are multiplied."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x[:, 0] * self.param("w", nn.initializers.zeros, ())


class Falling(xt.TrainerModule):
    """Its gradient is 1 for inputs of 1, so that a step of SGD takes the rate from ``w``."""

    model_class = Scale

    def loss_function(self, params, apply_fn, batch, rng, train=True):  # type: ignore[override]
        return apply_fn({"params": params}, batch["inputs"]), ({}, {})


def batches(count: int = STEPS, bad: Sequence[int] = ()) -> list[probes.Batch]:
    return [
        {"inputs": np.full((2, 1), np.nan if step in bad else 1.0, np.float32)}
        for step in range(1, count + 1)
    ]


def falling(**config: Any) -> probes.Repeatable:
    optimizer = xt.OptimizerConfig(name="sgd", scheduler=SCHEDULE)
    return probes.Repeatable(
        probes.traced(
            trainer_class=Falling, model={}, optimizer=optimizer, batch=batches(1)[0], **config
        )
    )


@pytest.fixture(scope="module")
def slope() -> probes.Repeatable:
    return falling()


@pytest.fixture(scope="module")
def uneven() -> probes.Repeatable:
    return falling(nonfinite_policy="skip")


@pytest.fixture(scope="module")
def rates(slope: probes.Repeatable) -> list[float]:
    """The rates by which the parameter has fallen, update by update."""
    values = [0.0]
    keep = lambda trainer, *args: values.append(float(trainer.state.params["w"]))  # noqa: E731
    slope.begin(probes.acting("on_training_step", keep)).train_model(batches(), num_epochs=1)
    found = -np.diff(values)
    assert len(set(found.round(6))) == STEPS
    return found.tolist()


MONITOR = xt.LearningRateMonitorConfig()


@pytest.mark.parametrize("every", [1, 3, 5])
def test_a_row_has_the_rate_of_its_last_update(
    slope: probes.Repeatable, rates: list[float], every: int
) -> None:
    trainer = slope.begin(MONITOR, every=every)
    trainer.train_model(batches(), num_epochs=1)
    expected = [rates[step - 1] for step in trainer.logger.steps()]
    assert trainer.logger.column("learning_rate") == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("max_steps_in_flight", [1, 4])
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("bad", [[4], [4, 5], [2, 7, 8]])
def test_refused_steps_do_not_advance_the_rate(
    uneven: probes.Repeatable,
    rates: list[float],
    bad: list[int],
    every: int,
    max_steps_in_flight: int,
) -> None:
    trainer = uneven.begin(MONITOR, every=every, max_steps_in_flight=max_steps_in_flight)
    trainer.train_model(batches(bad=bad), num_epochs=1)
    steps = trainer.logger.steps()
    updates = [sum(step not in bad for step in range(1, last + 1)) for last in steps]
    expected = [rates[count - 1] for count in updates]
    assert trainer.logger.column("learning_rate") == pytest.approx(expected, abs=1e-6)


def test_after_a_refused_step_that_ended_a_run_the_rate_is_right(
    slope: probes.Repeatable, rates: list[float]
) -> None:
    trainer, data = slope.begin(MONITOR), batches(bad=[5])
    trainer.train_model(data, num_epochs=1)
    assert trainer.stop_reason is StopReason.NONFINITE
    data[:] = batches()
    trainer.train_model(data, num_epochs=1)
    assert trainer.logger.steps() == list(range(1, STEPS + 1))
    assert trainer.logger.column("learning_rate") == pytest.approx(rates, abs=1e-6)


def test_the_rate_goes_on_with_the_run(slope: probes.Repeatable, rates: list[float]) -> None:
    trainer = slope.begin(MONITOR)
    for steps in (4, STEPS):
        trainer.train_model(batches(), num_train_steps=steps)
    assert trainer.logger.column("learning_rate") == pytest.approx(rates, abs=1e-6)


def test_the_metric_can_have_another_name(slope: probes.Repeatable) -> None:
    trainer = slope.begin(xt.LearningRateMonitorConfig(name="lr"))
    trainer.train_model(batches(2), num_epochs=1)
    assert len(trainer.logger.column("lr")) == 2


def test_without_a_schedule_nothing_is_logged() -> None:
    trainer = zoo.make_trainer(optimizer=optax.sgd(0.1), callbacks=[MONITOR])
    trainer.logger = probes.Memory()
    trainer.train_model(zoo.loader(rows=16), num_epochs=1)
    assert trainer.logger.steps() == [1]
    assert "learning_rate" not in trainer.logger.rows()[0][1]
