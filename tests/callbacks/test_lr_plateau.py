"""By what is the learning rate multiplied when a metric gets no better, and from which step on?"""

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import probes
import pytest
import zoo
from test_lr_monitor import MONITOR, SCHEDULE, Falling, batches

import xtrainer as xt
from xtrainer.callbacks.lr_plateau import Reductions, reduce_if_due
from xtrainer.callbacks.monitor import Standing, judge
from xtrainer.checkpoint import list_steps
from xtrainer.errors import CheckpointError, ConfigError
from xtrainer.loop import StopReason
from xtrainer.trainer.rate import set_rate

NAN, INF = math.nan, math.inf
CONSTANT = xt.OptimizerConfig(name="sgd", scheduler=xt.SchedulerConfig(lr=1.0))
ANY = xt.ReduceLROnPlateauConfig()


def factors(values: Sequence[float], **config: Any) -> list[float]:
    """Returns the factor after each value."""
    asked = xt.ReduceLROnPlateauConfig(**config)
    standing, reductions, found = Standing(), Reductions(), []
    for step, value in enumerate(values, start=1):
        standing = judge(asked, standing, value, step)
        standing, reductions = reduce_if_due(asked, standing, reductions)
        found.append(reductions.factor)
    return found


def factors_of_optax(
    values: Sequence[float], factor: float, patience: int, cooldown: int, atol: float, least: float
) -> list[float]:
    """Returns the factor after each value by the transformation of Optax."""
    transform = optax.contrib.reduce_on_plateau(
        factor, patience, rtol=0.0, atol=atol or 1e-6, cooldown=cooldown, min_scale=least
    )

    def one(state: Any, value: Any) -> Any:
        _, state = transform.update(jnp.ones(()), state, value=value)
        return state, state.scale

    return jax.lax.scan(one, transform.init(jnp.ones(())), jnp.asarray(values))[1].tolist()


@pytest.fixture(scope="module")
def falling() -> probes.Repeatable:
    """SGD whose steps are the learning rate; built for a factor."""
    trainer = probes.traced(
        trainer_class=Falling, model={}, optimizer=CONSTANT, batch=batches(1)[0], callbacks=[ANY]
    )
    return probes.Repeatable(trainer)


def scored(*scores: float) -> Any:
    """Returns what makes a callback that gives the n-th epoch the n-th score."""

    def add(trainer: Any, metrics: dict[str, float], epoch: int, *_: Any) -> None:
        metrics["score"] = scores[epoch - 1]

    return probes.acting("on_validation_epoch_end", add)


def moved(trainer: Any, before: float = 0.0) -> float:
    return before - float(trainer.state.params["w"])


# The judgement.


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("factor", "patience", "cooldown", "atol", "least"),
    [(0.5, 1, 0, 0.0, 0.0), (0.5, 3, 0, 0.25, 0.0), (0.25, 2, 3, 0.0, 0.0), (0.5, 2, 1, 0.0, 0.2)],
)
def test_the_factors_are_those_of_optax(
    factor: float, patience: int, cooldown: int, atol: float, least: float, seed: int
) -> None:
    # Eighths, so that no difference is lost in Optax's 32 bits.
    values = np.random.default_rng(seed).integers(0, 40, 40) / 8
    values[10:] += 1
    expected = factors_of_optax(values.tolist(), factor, patience, cooldown, atol, least)
    found = factors(
        values.tolist(), factor=factor, patience=patience, cooldown=cooldown, min_delta=atol,
        min_lr_factor=least,
    )  # fmt: skip
    assert found == pytest.approx(expected, rel=1e-6)
    assert len(set(found)) > 2


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_value_that_is_not_finite_is_no_improvement(bad: float) -> None:
    assert factors([1, bad, bad, bad], patience=3, factor=0.5) == [1, 1, 1, 0.5]
    assert factors([bad, bad, 1, 2], patience=2, factor=0.5) == [1, 0.5, 0.5, 0.5]


def test_the_direction_is_that_of_the_name() -> None:
    config = {"monitor": "accuracy", "patience": 1, "factor": 0.5}
    assert factors([1, 2, 3, 2], **config) == [1, 1, 1, 0.5]
    assert factors([1, 2, 3, 2], **config, mode="min") == [1, 0.5, 0.25, 0.125]


def test_it_is_reduced_as_often_as_it_may_be() -> None:
    assert factors([1] * 6, patience=1, factor=0.5, max_reductions=2) == [1, 0.5] + [0.25] * 4


def test_settings_that_cannot_be_are_all_named() -> None:
    config = xt.ReduceLROnPlateauConfig(
        mode="least",  # type: ignore[arg-type]
        min_delta=-1.0,
        factor=1.0,
        patience=0,
        cooldown=-1,
        min_lr_factor=1.0,
        max_reductions=0,
        main_process_only=True,
    )
    names = "mode min_delta factor patience cooldown min_lr_factor max_reductions main_process_only"
    assert [text.split(":")[0] for text in config.problems()] == names.split()
    assert xt.ReduceLROnPlateauConfig().problems() == []


# Runs.


def test_the_rate_falls_with_the_step_after_the_evaluation(falling: probes.Repeatable) -> None:
    config = xt.ReduceLROnPlateauConfig(monitor="score", mode="min", patience=1, factor=0.5)
    trainer = falling.begin(scored(3, 3, 2, 2, 2), config, MONITOR)
    with zoo.compilations() as compiled:
        trainer.train_model(batches(2), batches(1), num_epochs=5)
    assert trainer.logger.column("learning_rate") == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25]
    assert moved(trainer) == 2 * (1 + 1 + 0.5 + 0.5 + 0.25)
    assert compiled["train_step"] <= 1  # the first run of this trainer compiles it
    assert trainer.compiled_train_step.programs.recompilations == []
    assert trainer.callbacks[1].learning_rate_factor == 0.125  # after the last evaluation


@pytest.mark.parametrize("every", [3, 5])
def test_a_row_has_the_rate_of_its_last_step(falling: probes.Repeatable, every: int) -> None:
    config = xt.ReduceLROnPlateauConfig(monitor="score", mode="min", patience=1, factor=0.5)
    trainer = falling.begin(scored(1, 1, 1), config, MONITOR, every=every)
    trainer.train_model(batches(4), batches(1), num_epochs=3)
    expected = [1.0 if step <= 8 else 0.5 for step in trainer.logger.steps()]
    assert trainer.logger.column("learning_rate") == expected


def test_a_training_metric_is_judged_at_the_end_of_its_epoch(falling: probes.Repeatable) -> None:
    config = xt.ReduceLROnPlateauConfig(monitor="train/loss", min_delta=1e9, patience=1)
    trainer = falling.begin(config)
    trainer.train_model(batches(2), num_epochs=3)
    assert moved(trainer) == pytest.approx(2 * (1 + 1 + 0.1))


def test_factors_of_several_are_multiplied_with_the_schedule() -> None:
    configs = [
        xt.ReduceLROnPlateauConfig(monitor="score", mode="min", patience=1, factor=0.5),
        xt.ReduceLROnPlateauConfig(monitor="score", mode="max", patience=2, factor=0.25),
    ]
    optimizer = xt.OptimizerConfig(name="sgd", scheduler=SCHEDULE)
    trainer = probes.traced(
        trainer_class=Falling, model={}, optimizer=optimizer, batch=batches(1)[0], callbacks=configs
    )
    trainer.callbacks[:0] = [scored(1, 1, 1, 1, 1, 1)(trainer)]
    trainer.train_model(batches(2), batches(1), num_epochs=6)
    plain = [float(trainer.lr_schedule(step)) for step in range(12)]
    scale = [1, 1, 1, 1, 0.5, 0.5, 0.0625, 0.0625, 0.03125, 0.03125, 0.00390625, 0.00390625]
    assert moved(trainer) == pytest.approx(float(np.dot(plain, scale)), rel=1e-6)


def test_it_is_told_when_the_rate_is_reduced(
    falling: probes.Repeatable, caplog: pytest.LogCaptureFixture
) -> None:
    config = xt.ReduceLROnPlateauConfig(monitor="score", mode="min", patience=1, factor=0.5)
    with caplog.at_level(logging.INFO, "xtrainer.callbacks.lr_plateau"):
        falling.begin(scored(1, 2), config).train_model(batches(2), batches(1), num_epochs=2)
    said = [r.getMessage() for r in caplog.records if r.name.endswith("lr_plateau")]
    assert said == [
        "ReduceLROnPlateau: 'score' has not improved for 1 evaluations. The learning rate is "
        "multiplied by 0.5 after step 4, before by 1."
    ]


def test_a_run_that_goes_on_reduces_where_it_would_have_anyway(
    falling: probes.Repeatable, tmp_path: Path
) -> None:
    config = xt.ReduceLROnPlateauConfig(
        monitor="score", mode="min", patience=2, factor=0.5, cooldown=1
    )
    scores = (3,) * 6

    def begin(name: str) -> Any:
        saving = xt.ModelCheckpointConfig(log_path=str(tmp_path / name), max_to_keep=None)
        return falling.begin(scored(*scores), config, saving)

    whole = begin("whole")
    whole.train_model(batches(2), batches(1), num_epochs=6)
    expected = probes.learned(whole)
    assert list_steps(tmp_path / "whole") == [2, 4, 6, 8, 10, 12]
    for epochs in (2, 3, 5):  # before a reduction, just behind it, behind the cooldown
        begin(str(epochs)).train_model(batches(2), batches(1), num_epochs=epochs)
        again = begin(str(epochs))
        again.train_model(batches(2), batches(1), num_epochs=6)
        probes.assert_same_course(probes.learned(again), expected)
        assert again.callbacks[1].state_dict() == whole.callbacks[1].state_dict()
    assert whole.callbacks[1].reductions.count == 2


def test_a_run_that_goes_back_has_the_factor_of_where_it_goes_to(tmp_path: Path) -> None:
    configs = [
        xt.ReduceLROnPlateauConfig(monitor="train/loss", min_delta=1e9, patience=1, factor=0.5),
        xt.ModelCheckpointConfig(log_path=str(tmp_path), max_to_keep=None, every_n_steps=2),
        xt.LearningRateMonitorConfig(),
    ]
    trainer = probes.traced(
        trainer_class=Falling, model={}, optimizer=CONSTANT, batch=batches(1)[0], callbacks=configs,
        nonfinite_policy="rollback", max_consecutive_nonfinite=1, rollback_lr_scale=0.5,
    )  # fmt: skip
    trainer.train_model(batches(4), num_epochs=2)
    assert [trainer.learning_rate(step) for step in (8, 9)] == [1.0, 0.5]
    trainer.train_model(batches(4, bad=[3]), num_epochs=3)
    assert (trainer.stop_reason, trainer.global_step) == (StopReason.FINISHED, 11)
    assert len(trainer.progress.rollbacks) == 1 and trainer.progress.rollbacks[0].to_step == 10
    assert [trainer.learning_rate(step) for step in (11, 12)] == [0.5 * 0.5, 0.5 * 0.25]
    assert float(trainer.state.opt_state[1].scale) == 0.5 * 0.25
    assert moved(trainer) == 8 * 1.0 + 2 * 0.5 + 1 * 0.25


def test_a_ready_transformation_may_be_scaled() -> None:
    config = xt.ReduceLROnPlateauConfig(monitor="train/loss", min_delta=1e9, patience=1, factor=0.5)
    trainer = probes.traced(
        trainer_class=Falling, model={}, optimizer=optax.sgd(1.0), batch=batches(1)[0],
        callbacks=[config],
    )  # fmt: skip
    trainer.train_model(batches(2), num_epochs=4)
    assert moved(trainer) == 2 * (1 + 1 + 0.5 + 0.25)


def test_an_optimizer_that_was_built_without_a_factor_is_refused() -> None:
    trainer = probes.traced(
        trainer_class=Falling, model={}, optimizer=CONSTANT, batch=batches(1)[0]
    )
    callback = ANY.create(trainer)
    callback.load_state_dict({"factor": 0.5, "count": 1, "cooldown": 0, "standing": {}})
    trainer.callbacks.append(callback)
    with pytest.raises(ConfigError, match=r"multiplied by 0.5.*TrainerConfig\(callbacks="):
        trainer.train_model(batches(1), num_epochs=1)


def test_a_line_search_is_refused(falling: probes.Repeatable) -> None:
    trainer = falling.begin(ANY)
    fake = SimpleNamespace(
        state=trainer.state, trainer_config=trainer.trainer_config, progress=trainer.progress,
        callbacks=[], optimizer_config=SimpleNamespace(name="optax.lbfgs"),
    )  # fmt: skip
    with pytest.raises(ConfigError, match="'optax.lbfgs'.*another optimizer"):
        set_rate(fake)  # type: ignore[arg-type]


def test_a_checkpoint_without_a_factor_cannot_be_gone_on_from(
    falling: probes.Repeatable, tmp_path: Path
) -> None:
    saving = xt.ModelCheckpointConfig(log_path=str(tmp_path))
    plain = probes.traced(
        trainer_class=Falling, model={}, optimizer=CONSTANT, batch=batches(1)[0], callbacks=[saving]
    )
    plain.train_model(batches(1), num_epochs=1)
    with pytest.raises(CheckpointError, match="opt_state") as error:
        falling.begin(ANY, saving).train_model(batches(1), num_epochs=2)
    assert "has a factor" in "".join(error.value.__notes__)


@pytest.mark.parametrize("where", ["validation", "training"])
def test_what_it_monitors_must_be_there(falling: probes.Repeatable, where: str) -> None:
    name = "val/loss" if where == "validation" else "train/los"
    trainer = falling.begin(xt.ReduceLROnPlateauConfig(monitor=name))
    with pytest.raises(xt.XTrainerError, match=f"ReduceLROnPlateau monitors '{name}'"):
        trainer.train_model(batches(1), num_epochs=1)


def test_its_state_survives_json(falling: probes.Repeatable) -> None:
    config = xt.ReduceLROnPlateauConfig(monitor="score", mode="min", patience=1, factor=0.5)
    trainer = falling.begin(scored(1, INF), config)
    trainer.train_model(batches(1), batches(1), num_epochs=2)
    saved = json.loads(json.dumps(trainer.callbacks[1].state_dict(), allow_nan=False))
    again = config.create(trainer)
    again.load_state_dict(saved)
    assert (again.reductions, again.standing) == (Reductions(0.5, 1, 0), Standing(1, 1, 0, INF, 2))
