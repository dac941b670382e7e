"""Does the range test find where training diverges, and leave everything as it was?"""

import math
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import probes
import pytest
import zoo

import xtrainer as xt
from xtrainer.errors import LoaderError
from xtrainer.tuning import LearningRateCurve, find_learning_rate

STEEPEST = 4.0
"""The largest curvature of the quadratic: gradient descent diverges at rates above 2 / STEEPEST."""


class Point(nn.Module):
    """A point with four coordinates."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return self.param("point", nn.initializers.ones, (4,))[None] + 0 * x.sum(-1, keepdims=True)


class Quadratic(xt.TrainerModule):
    """Half the squared distance from the origin, with a curvature for each coordinate."""

    model_class = Point

    def loss_function(self, params, apply_fn, batch, rng, train=True):  # type: ignore[override]
        point = apply_fn({"params": params}, batch["inputs"])
        return 0.5 * (jnp.array([[0.5, 1.0, 2.0, STEEPEST]]) * point**2).sum(-1), ({}, {})


def quadratic(**kwargs: Any) -> Any:
    batch = {"inputs": np.zeros((4, 2), np.float32)}
    return zoo.make_trainer(Quadratic, batch=batch, mesh=zoo.devices(1), **kwargs), [batch]


@pytest.fixture(scope="module")
def stage() -> probes.Repeatable:
    """Gives a small trainer with dropout and Adam that is compiled once."""
    return probes.Repeatable(probes.traced(model={"width": 4, "dropout": 0.3}))


def test_a_quadratic_diverges_where_its_curvature_says() -> None:
    trainer, loader = quadratic()
    curve = find_learning_rate(trainer, loader, 1e-4, 1e2, num_steps=100)
    factor = 1e6 ** (1 / 99)
    np.testing.assert_allclose(curve.rates, 1e-4 * factor ** np.arange(len(curve.rates)), rtol=1e-4)
    largest_stable = 2 / STEEPEST
    assert curve.diverged and len(curve.rates) < 100
    assert largest_stable < curve.rates[-1] < 10 * largest_stable
    assert curve.suggestion is not None
    assert largest_stable / 100 < curve.suggestion < largest_stable


def test_the_losses_are_those_of_the_steps_by_hand() -> None:
    trainer, loader = quadratic(optimizer=zoo.optimizer("sgd", momentum=0.9))
    curve = find_learning_rate(trainer, loader, 1e-3, 1e-1, num_steps=5)
    assert not curve.diverged
    curvature = np.array([0.5, 1.0, 2.0, STEEPEST])
    transform = optax.sgd(lambda count: 1e-3 * 100 ** (count / 4), momentum=0.9)
    point = jnp.ones(4)
    state, losses = transform.init(point), []
    for _ in range(5):
        losses.append(float(0.5 * (curvature * point**2).sum()))
        updates, state = transform.update(curvature * point, state)
        point = optax.apply_updates(point, updates)
    np.testing.assert_allclose(curve.losses, losses, rtol=1e-5)


@pytest.mark.parametrize("steps", [3, 6], ids=["within a pass", "at its end"])
def test_everything_is_as_before(stage: probes.Repeatable, steps: int) -> None:
    def run(search: bool) -> Any:
        trainer = stage.begin()
        loader = xt.ArrayLoader(probes.examples(22), 4, shuffle=True, seed=1)
        trainer.train_model(loader, num_train_steps=steps)
        if search:
            before = (trainer.optimizer, trainer.lr_schedule, trainer.sources.positions())
            with zoo.compilations() as compiled:
                curve = find_learning_rate(trainer, loader, num_steps=9)
            assert compiled["train_step"] == 1
            assert len(curve.losses) == 9  # more than a pass has: they came again
            assert before == (trainer.optimizer, trainer.lr_schedule, trainer.sources.positions())
        state = zoo.host(trainer.state)
        trainer.train_model(loader, num_train_steps=10)
        return state, zoo.host(trainer.state), trainer.logger.rows()

    alone, searched = run(search=False), run(search=True)
    zoo.assert_same(searched[:2], alone[:2])
    assert searched[2] == alone[2]


def test_it_begins_at_the_parameters_of_now_with_a_new_optimizer(stage: probes.Repeatable) -> None:
    trainer, batches = stage.begin(), probes.numbered(2)
    first = find_learning_rate(trainer, batches, num_steps=2)
    trainer.train_model(batches, num_epochs=3)
    later = find_learning_rate(trainer, batches, num_steps=2)
    assert later.rates == first.rates
    assert later.losses[0] < first.losses[0]


def test_a_step_that_is_not_finite_ends_it(stage: probes.Repeatable) -> None:
    curve = find_learning_rate(stage.begin(), probes.numbered(5, bad=[3]), num_steps=5)
    assert curve.diverged
    assert [math.isfinite(loss) for loss in curve.losses] == [True, True, False]


def test_a_loader_without_batches_is_refused(stage: probes.Repeatable) -> None:
    with pytest.raises(LoaderError, match="has no batch left"):
        find_learning_rate(stage.begin(), [])


@pytest.mark.parametrize(
    ("optimizer", "numbers", "match"),
    [
        (optax.sgd(0.1), {}, "ready Optax transformation"),
        (xt.OptimizerConfig(name="lbfgs"), {}, "searches the length"),
        (None, {"min_lr": 1.0, "max_lr": 0.1}, "0 < min_lr < max_lr"),
        (None, {"num_steps": 1}, "num_steps=1, expected a whole number >= 2"),
        (None, {"stop_factor": 1.0}, "stop_factor=1.0, expected > 1"),
    ],
)
def test_what_cannot_be_is_refused(optimizer: Any, numbers: dict[str, Any], match: str) -> None:
    trainer, loader = quadratic(optimizer=optimizer)
    with pytest.raises(xt.ConfigError, match=match):
        find_learning_rate(trainer, loader, **numbers)


def test_an_optimizer_that_does_not_follow_its_scheduler_is_refused() -> None:
    class Stubborn(Quadratic):
        def init_optimizer(self, optimizer_config: Any) -> None:
            self.optimizer, self.lr_schedule = xt.build_optimizer(zoo.optimizer("sgd", 0.3))

    batch = {"inputs": np.zeros((4, 2), np.float32)}
    trainer = zoo.make_trainer(Stubborn, batch=batch, mesh=zoo.devices(1))
    with pytest.raises(xt.ConfigError, match="Stubborn.init_optimizer"):
        find_learning_rate(trainer, [batch])


def test_groups_and_scaled_rates_follow_the_one_rate_of_the_course() -> None:
    own = xt.ParamGroupConfig(name="own", params=("*",), scheduler=xt.SchedulerConfig(lr=9.0))
    plain, loader = quadratic(optimizer=zoo.optimizer("sgd"))
    grouped, _ = quadratic(
        optimizer=zoo.optimizer("sgd", groups=(own,), scale_lr_with=("accumulation",))
    )
    schedules = grouped.group_schedules
    assert find_learning_rate(grouped, loader, num_steps=5) == find_learning_rate(
        plain, loader, num_steps=5
    )
    assert grouped.group_schedules is schedules and schedules.keys() == {"own"}


def test_the_curve_is_told_and_drawn(tmp_path: Path) -> None:
    rates = tuple(10.0**exponent for exponent in range(-6, 2))
    curve = LearningRateCurve(rates, (2.0, 2.0, 1.9, 1.5, 0.5, 0.4, 5.0, math.nan), True)
    assert curve.suggestion == 1e-3  # where the smoothed loss falls most
    assert curve.table(4).splitlines()[1].split() == ["1.000e-06", "2", "2"]
    assert curve.table(4).splitlines()[-1] == "suggestion: 1.000e-03"
    assert len(curve.table(4).splitlines()) == 1 + 4 + 1
    path = curve.plot(tmp_path / "curve.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_loss_that_never_falls_gives_no_suggestion() -> None:
    curve = LearningRateCurve((0.1, 1.0), (1.0, 3.0), True)
    assert curve.suggestion is None
    assert curve.table().splitlines()[-1] == "suggestion: none: the loss does not fall"
