"""Does a run in float16 find its scale by itself, and go on from a checkpoint as if nothing was?"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import probes
import pytest
import zoo

import xtrainer as xt
from xtrainer.loop import StopReason

DYNAMIC = xt.PrecisionConfig(loss_scale="dynamic", loss_scale_growth_steps=3)


@jax.custom_jvp
def spoiled(x: jax.Array, factor: jax.Array) -> jax.Array:
    """Returns ``x``; its gradient is multiplied by ``factor``."""
    return x


@spoiled.defjvp
def _(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    return primals[0], tangents[0] * primals[1]


class Spoilable(probes.Traced):
    """Its gradient overflows with a batch that holds an infinite factor."""

    def loss_function(self, params, apply_fn, batch, rng, train=True):  # type: ignore[override]
        params = {**params, "Dense_1": jax.tree.map(
            lambda x: spoiled(x, batch["factor"].max()), params["Dense_1"]
        )}  # fmt: skip
        return super().loss_function(params, apply_fn, batch, rng, train)


def batches(count: int, overflows: Sequence[int] = (), bad: Sequence[int] = ()) -> list[Any]:
    """Returns numbered batches of eight rows; some overflow backward, others are not finite."""
    found = probes.numbered(count, 8, bad=bad)
    for number, batch in enumerate(found, start=1):
        factor = np.inf if number in overflows else 1.0
        batch["factor"] = np.full(8, factor, np.float32)
    return found


def make(**kwargs: Any) -> Any:
    """Returns a trainer with a dynamic scale, by Adam and without anything random."""
    config = {"trainer_class": Spoilable, "model": {"width": 4}, "batch": batches(1)[0]}
    return probes.traced(**{**config, "precision": DYNAMIC, **kwargs})


@pytest.fixture(scope="module")
def stage() -> probes.Repeatable:
    """Gives such a trainer on one device; a failure ends its runs at once."""
    return probes.Repeatable(make())


def scale(trainer: Any) -> tuple[int, int]:
    """Returns the exponent of the scale and the good steps."""
    guard = trainer.state.guard
    return int(guard.scale_exponent), int(guard.good_steps)


def train(trainer: Any, data: Any, steps: int = 8) -> Any:
    trainer.train_model(data, num_train_steps=steps)
    return trainer.stop_reason


# Overflows.


def test_a_run_goes_on_after_overflows_as_if_those_batches_were_not_there(
    stage: probes.Repeatable,
) -> None:
    trainer = stage.begin()
    assert train(trainer, batches(8, overflows=(3, 4))) is StopReason.FINISHED
    assert (trainer.progress.skipped, scale(trainer)) == (2, (14, 1))
    rows = trainer.logger
    assert rows.steps() == [1, 2, 5, 6, 7, 8]
    assert rows.column("loss_scale") == [2.0**15] * 2 + [2.0**13] * 3 + [2.0**14]
    assert [row.get("skipped_steps") for _, row in rows.rows()] == [None, None, 2, 2, 2, 2]
    params = zoo.host(trainer.state.params)
    losses = rows.column("loss_mean")
    without = [b for i, b in enumerate(batches(8), start=1) if i not in (3, 4)]
    other = stage.begin()
    train(other, without, steps=6)
    zoo.assert_same(other.state.params, params)
    assert other.logger.column("loss_mean") == losses


def test_overflows_make_no_run_go_back(tmp_path: Path) -> None:
    saving = xt.ModelCheckpointConfig(log_path=str(tmp_path), every_n_steps=1)
    policy = {"nonfinite_policy": "rollback", "max_consecutive_nonfinite": 1}
    trainer = make(callbacks=[saving], **policy)
    assert train(trainer, batches(6, overflows=(2, 3, 4)), 6) is StopReason.FINISHED
    assert (trainer.progress.rollbacks, trainer.progress.skipped) == ([], 3)
    assert scale(trainer) == (12, 2)


def test_a_loss_that_is_not_finite_ends_the_run_and_the_next_keeps_the_scale(
    stage: probes.Repeatable,
) -> None:
    trainer = stage.begin()
    assert train(trainer, batches(8, overflows=(2,), bad=(4,))) is StopReason.NONFINITE
    assert (trainer.global_step, scale(trainer)) == (3, (14, 1))
    assert train(trainer, batches(8), 6) is StopReason.FINISHED
    assert (trainer.progress.skipped, scale(trainer)) == (1, (15, 1))


def test_at_the_lowest_scale_an_overflow_ends_the_run(stage: probes.Repeatable) -> None:
    trainer = stage.begin()
    every = batches(20, overflows=range(1, 21))
    assert train(trainer, every, 20) is StopReason.NONFINITE
    assert "Step 16 was not finite" in trainer.stop_detail
    assert (trainer.global_step, scale(trainer)) == (15, (0, 0))


@pytest.mark.parametrize(
    "kwargs",
    [
        {"mesh": None},
        {"steps_per_dispatch": 4, "logger": xt.LoggerConfig(log_every_n_steps=4, log_tools=[])},
        {"gradient_accumulate_steps": 2},
    ],
    ids=["eight_devices", "dispatch", "accumulated"],
)
def test_all_ways_to_take_steps_find_the_same_scale(
    stage: probes.Repeatable, kwargs: dict[str, Any]
) -> None:
    data = batches(8, overflows=(3, 6))
    expected, trainer = stage.begin(), make(**kwargs)
    train(expected, data)
    with zoo.compilations() as compiled:
        assert train(trainer, data) is StopReason.FINISHED
    assert scale(trainer) == scale(expected) == (13, 2)
    assert trainer.progress.skipped == 2
    if "steps_per_dispatch" in kwargs:
        zoo.assert_same(trainer.state, expected.state)
    else:
        assert compiled["train_step"] == 1
        zoo.assert_close(trainer.state.params, expected.state.params, rtol=1e-3, atol=1e-4)


# Resume.


@pytest.mark.parametrize("middle", [2, 4, 6])
def test_a_run_resumed_goes_on_with_its_scale(
    stage: probes.Repeatable, tmp_path: Path, middle: int
) -> None:
    data = batches(8, overflows=(4,))
    whole = stage.begin()
    train(whole, data)
    expected = probes.learned(whole)
    saving = xt.ModelCheckpointConfig(log_path=str(tmp_path))
    train(stage.begin(saving), data, middle)
    again = stage.begin(saving)
    assert again.load_model() == middle
    assert scale(again) == {2: (15, 2), 4: (15, 0), 6: (15, 2)}[middle]
    with zoo.compilations() as compiled:
        train(again, data)
    assert not compiled["train_step"]
    probes.assert_same_course(probes.learned(again), expected)
    loaded = Spoilable.load_from_checkpoint(tmp_path, model_class=zoo.MLP)
    zoo.assert_same(loaded.state.params, expected[0].params)


# float16.


class Large(nn.Module):
    """A first layer with outputs of some thousands, at which float16 still holds them."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = nn.relu(nn.Dense(8, kernel_init=nn.initializers.normal(2000.0))(x))
        return nn.Dense(3, kernel_init=nn.initializers.normal(1e-4))(x)


class LargeClassifier(zoo.Classifier):
    model_class = Large


def half(loss_scale: Any) -> Any:
    """Returns a trainer in float16 whose gradients are as large as the outputs of its layers."""
    return zoo.make_trainer(
        LargeClassifier,
        optimizer=zoo.optimizer("adam", 1e-4),
        batch=zoo.classification_data(256),
        mesh=zoo.devices(1),
        logger=xt.LoggerConfig(log_every_n_steps=1, log_tools=[]),
        precision=xt.PrecisionConfig(compute_dtype="float16", loss_scale=loss_scale),
    )


def test_a_run_in_float16_finds_the_scale_at_which_its_gradients_fit() -> None:
    trainer = half("dynamic")
    trainer.logger = probes.Memory()
    assert train(trainer, zoo.loader(1024, 256), 40) is StopReason.FINISHED
    exponent, good = scale(trainer)
    assert trainer.progress.skipped == 15 - exponent > 3
    assert good >= 20
    losses = trainer.logger.column("loss_mean")
    assert losses[-1] < 0.7 * losses[0]
    assert all(np.isfinite(losses))


def test_the_same_run_without_a_scale_does_not_take_a_step() -> None:
    trainer = half(None)
    assert train(trainer, zoo.loader(1024, 256), 40) is StopReason.NONFINITE
    assert trainer.global_step == 0
