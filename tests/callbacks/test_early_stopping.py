"""At which step does a run end whose metric has stopped getting better, and what does it say?"""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import probes
import pytest

import xtrainer as xt
from xtrainer.callbacks.early_stopping import Standing, judge, reason_to_stop
from xtrainer.checkpoint import list_steps
from xtrainer.errors import ConfigError, MetricError
from xtrainer.loop import StopReason

NAN, INF = math.nan, math.inf
VAL = probes.numbered(1, first=100)


def stops_at(values: Sequence[float], **config: Any) -> int | None:
    """Returns the number of the value, from 1, with which a run ends; values are 10 steps apart."""
    asked = xt.EarlyStoppingConfig(**config)
    standing = Standing()
    for number, value in enumerate(values, start=1):
        standing = judge(asked, standing, value, 10 * number)
        if reason_to_stop(asked, standing) is not None:
            return number
    return None


def scored(*scores: float, hook: str = "on_validation_epoch_end") -> Any:
    """Returns what makes a callback that gives the epoch with the number n the n-th score."""

    def add(trainer: Any, metrics: dict[str, float], epoch: int, *_: Any) -> None:
        metrics["score"] = scores[epoch - 1]

    return probes.acting(hook, add)


def train(trainer: Any, epochs: int = 8, val: Any = VAL, batches: int = 2, **kwargs: Any) -> Any:
    trainer.train_model(probes.numbered(batches), val, num_epochs=epochs, **kwargs)
    return trainer.stop_reason, trainer.global_step, trainer.stop_detail


# The judgement.


@pytest.mark.parametrize(
    ("values", "config", "number"),
    [
        ([3, 2, 1, 1, 1, 1], {}, 6),
        ([3, 2, 1, 1, 1], {}, None),
        ([1, 2, 2, 0.5, 2, 2], {}, None),  # an improvement begins the patience anew
        ([1, 2, 2, 0.5, 2, 2, 2], {}, 7),
        ([1, 2, 3], {"mode": "max", "patience": 1}, None),
        ([1, 2, 3, 3], {"mode": "max", "patience": 1}, 4),
        ([3, 2, 1], {"mode": "max", "patience": 1}, 2),
        ([1.0, 0.95, 0.89], {"min_delta": 0.1, "patience": 2}, None),
        ([1.0, 0.95, 0.91], {"min_delta": 0.1, "patience": 2}, 3),
        ([1.0, 1.25, 1.5], {"min_delta": 0.5, "patience": 2, "mode": "max"}, 3),
        ([1] * 20, {"patience": -1}, None),
        ([1] * 20, {"patience": -1, "patience_steps": 30}, 4),
        ([1] * 20, {"patience": -1, "patience_steps": 25}, 4),
        ([1] * 20, {"patience": 2, "patience_steps": 30}, 3),
        ([9, 5, 2, 1.5], {"stopping_threshold": 2.0}, 3),
        ([1, 5, 9], {"stopping_threshold": 5.0, "mode": "max"}, 2),
        ([9, 10, 10.5], {"divergence_threshold": 10.0}, 3),
        ([9, 5, 4.5], {"divergence_threshold": 5.0, "mode": "max"}, 3),
    ],
)
def test_a_run_ends_with_the_value_that_asks_for_it(
    values: list[float], config: dict[str, Any], number: int | None
) -> None:
    assert stops_at(values, **config) == number


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_value_that_is_not_finite_is_never_the_best_and_resets_no_patience(
    bad: float, mode: str
) -> None:
    late = {"mode": mode, "check_finite": False}
    assert stops_at([bad, 1, bad, bad, bad], **late) == 5
    assert stops_at([bad, bad, bad], **late) == 3
    assert stops_at([1, bad, 1, bad], **late) == 4
    standing = judge(xt.EarlyStoppingConfig(**late), Standing(0.5, 3, 1), bad, 7)
    assert standing[:3] == (0.5, 3, 2)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize(
    ("before", "number"), [([], 1), ([1.0], 2), ([1.0, 1.0, 2.0], 4)], ids=["first", "2nd", "last"]
)
def test_the_first_value_that_is_not_finite_ends_the_run(
    bad: float, mode: str, before: list[float], number: int
) -> None:
    # Also where it lies beyond a threshold: the reason is the more telling one.
    config = {"mode": mode, "stopping_threshold": -9.0 if mode == "min" else 9.0}
    assert stops_at([*before, bad], **config) == number
    asked = xt.EarlyStoppingConfig(**config)
    assert reason_to_stop(asked, judge(asked, Standing(), bad, 4)) == (
        f"'loss' is not finite at step 4: {bad}."
    )


def test_an_infinity_is_not_as_good_as_was_asked_for() -> None:
    asked = {"check_finite": False, "stopping_threshold": 0.1}
    assert stops_at([1.0, -INF, 0.5, 0.4], patience=9, **asked) is None


@pytest.mark.parametrize("value", [0.1, NAN, INF, -INF, None])
def test_how_a_metric_stands_survives_json(value: float | None) -> None:
    standing = Standing(0.1, 3, 2, value, 9)
    again = Standing.from_json(json.loads(json.dumps(standing.to_json(), allow_nan=False)))
    assert repr(again) == repr(standing)


def test_settings_that_cannot_be_are_all_named() -> None:
    config = xt.EarlyStoppingConfig(
        mode="least",  # type: ignore[arg-type]
        min_delta=-1.0,
        patience=0,
        patience_steps=-2,
        stopping_threshold=NAN,
        divergence_threshold=INF,
    )
    found = config.problems()
    names = ("mode", "min_delta", "patience", "patience_steps", "stopping_threshold")
    assert [text.split(":")[0] for text in found] == [*names, "divergence_threshold"]
    assert xt.EarlyStoppingConfig().problems() == []


# Runs.


def test_a_run_ends_after_the_validation_that_exhausts_the_patience(
    stage: probes.Repeatable,
) -> None:
    config = xt.EarlyStoppingConfig(monitor="score", patience=2)
    trainer = stage.begin(scored(3, 1, 2, 1, 0, 0), config)
    assert train(trainer) == (
        StopReason.REQUESTED, 8,
        "EarlyStopping: 'score' has not improved for 2 evaluations: 1 at step 4 was its best, at "
        "step 8 it is 1.",
    )  # fmt: skip
    assert trainer.logger.steps("val") == [2, 4, 6, 8]


@pytest.mark.parametrize(
    ("monitor", "mode", "hook", "val"),
    [
        ("val/score", "max", "on_validation_epoch_end", VAL),
        ("b_score", "max", "on_validation_epoch_end", {"a": VAL, "b": VAL}),
        ("train/score", "max", "on_training_epoch_end", VAL),
        ("score", "max", "on_training_epoch_end", None),
    ],
)
def test_the_monitored_set_is_the_one_that_is_named(
    stage: probes.Repeatable, monitor: str, mode: Any, hook: str, val: Any
) -> None:
    def add(trainer: Any, metrics: dict[str, float], epoch: int, *_: Any) -> None:
        # Every other metric goes on getting better.
        metrics.update({"score": float(epoch), "a_score": float(epoch), "b_score": float(epoch)})
        metrics[monitor.split("/")[-1]] = (1.0, 3.0, 2.0, 2.5, 9.0)[epoch - 1]

    def better(trainer: Any, metrics: dict[str, float], epoch: int, *_: Any) -> None:
        metrics["score"] = float(epoch)

    other = {"on_training_epoch_end", "on_validation_epoch_end"} - {hook}
    config = xt.EarlyStoppingConfig(monitor=monitor, mode=mode, patience=2)
    trainer = stage.begin(
        probes.acting(hook, add), *(probes.acting(name, better) for name in other), config
    )
    assert train(trainer, val=val)[:2] == (StopReason.REQUESTED, 8)


def test_real_losses_of_named_sets_are_monitored(stage: probes.Repeatable) -> None:
    config = xt.EarlyStoppingConfig(monitor="b_loss", patience=-1, stopping_threshold=1e6)
    reason, step, detail = train(stage.begin(config), val={"a": VAL, "b": VAL})
    assert (reason, step) == (StopReason.REQUESTED, 2)
    assert detail.startswith("EarlyStopping: 'b_loss' is ")


def test_validations_by_steps_count_and_end_the_run_within_an_epoch(
    stage: probes.Repeatable,
) -> None:
    by_step = lambda trainer, metrics, epoch, step: metrics.update(score=float(step))  # noqa: E731
    config = xt.EarlyStoppingConfig(monitor="score", patience=-1, patience_steps=4)
    make = probes.acting("on_validation_epoch_end", by_step)
    trainer = stage.begin(make, config, check_val_every_n_steps=3, check_val_every_n_epoch=-1)
    assert train(trainer, epochs=1, batches=20)[:2] == (StopReason.REQUESTED, 9)
    assert (trainer.progress.step_in_epoch, trainer.progress.epochs_done) == (9, 0)


def test_only_due_evaluations_count(stage: probes.Repeatable) -> None:
    config = xt.EarlyStoppingConfig(monitor="score", patience=1, every_n_epochs=3)
    trainer = stage.begin(scored(*[1.0] * 8), config)
    assert train(trainer)[:2] == (StopReason.REQUESTED, 12)


def test_a_run_whose_metric_improves_is_finished(stage: probes.Repeatable) -> None:
    config = xt.EarlyStoppingConfig(monitor="score", patience=1)
    assert train(stage.begin(scored(5, 4, 3, 2), config), epochs=4) == (StopReason.FINISHED, 8, "")


@pytest.mark.parametrize(
    ("scores", "check", "step", "reason"),
    [
        ((NAN, 1, 1), True, 2, "'score' is not finite at step 2: nan."),
        ((1, NAN, 1), True, 4, "'score' is not finite at step 4: nan."),
        ((NAN, NAN, NAN, NAN), False, 6, "for 3 evaluations: it was never finite, at step 6"),
        ((NAN, 1, NAN, 1, NAN), False, 10, "for 3 evaluations: 1 at step 4 was its best"),
    ],
    ids=["first", "second", "all", "alternating"],
)
def test_nan_ends_a_run_at_once_or_counts_as_no_improvement(
    stage: probes.Repeatable, scores: tuple[float, ...], check: bool, step: int, reason: str
) -> None:
    config = xt.EarlyStoppingConfig(monitor="score", check_finite=check)
    found = train(stage.begin(scored(*scores, *[1.0] * 5), config))
    assert found[:2] == (StopReason.REQUESTED, step)
    assert reason in found[2]


@pytest.mark.parametrize(("monitor", "val"), [("scor", VAL), ("train/scor", None)])
def test_an_unknown_metric_is_an_error_at_once_that_lists_the_known_ones(
    stage: probes.Repeatable, monitor: str, val: Any
) -> None:
    hook = "on_training_epoch_end" if val is None else "on_validation_epoch_end"
    trainer = stage.begin(scored(1, 1, 1, hook=hook), xt.EarlyStoppingConfig(monitor=monitor))
    message = (
        rf"monitors '{monitor}'.* step 2\. Did you mean 'score'\? Known names: .*loss, .*score"
    )
    with pytest.raises(MetricError, match=message):
        train(trainer, val=val)
    assert trainer.global_step == 2


def test_a_validation_metric_without_a_validation_is_an_error_before_the_first_step(
    stage: probes.Repeatable,
) -> None:
    trainer = stage.begin(xt.EarlyStoppingConfig(monitor="val/loss"))
    with pytest.raises(ConfigError, match="'val/loss', but there is no validation"):
        train(trainer, val=None)
    assert trainer.global_step == 0


def test_an_epoch_that_the_run_cuts_short_is_not_judged(stage: probes.Repeatable) -> None:
    callback = xt.EarlyStoppingConfig(monitor="train/score", patience=1)
    trainer = stage.begin(scored(1, 1, 1, 1, hook="on_training_epoch_end"), callback)
    trainer.train_model(probes.numbered(4), num_train_steps=6)
    assert trainer.stop_reason is StopReason.FINISHED


# Resume.


Make = Callable[..., Any]


@pytest.fixture
def begin(stage: probes.Repeatable, tmp_path: Path) -> Make:
    """Returns what begins a run that validates every other step and saves with each."""
    scores = {2: 4.0, 4: 2.0, 6: 3.0, 8: NAN, 10: 2.5, 12: 1.0}

    def add(trainer: Any, metrics: dict[str, float], epoch: int, step: int) -> None:
        metrics["score"] = scores[step]

    def make(*callbacks: Any, patience: int = 3, **config: Any) -> Any:
        asked = {"monitor": "score", "patience": patience, "check_finite": False, **config}
        return stage.begin(
            probes.acting("on_validation_epoch_end", add),
            xt.EarlyStoppingConfig(**asked),
            *callbacks,
            xt.ModelCheckpointConfig(log_path=str(tmp_path), max_to_keep=None),
            check_val_every_n_steps=2,
            check_val_every_n_epoch=-1,
        )

    return make


@pytest.mark.parametrize("middle", [1, 4, 5, 6, 7, 8, 9])
def test_a_run_resumed_within_the_patience_stops_where_an_unbroken_one_does(
    begin: Make, tmp_path: Path, middle: int
) -> None:
    whole = begin()
    expected = train(whole, epochs=1, batches=12)
    assert expected[:2] == (StopReason.REQUESTED, 10)
    assert "2 at step 4 was its best, at step 10 it is 2.5" in expected[2]
    state = probes.learned(whole)
    shutil.rmtree(tmp_path)
    train(begin(probes.stop_at(middle)), epochs=1, batches=12)
    again = begin()
    assert again.load_model() == middle
    assert train(again, epochs=1, batches=12) == expected
    probes.assert_same_course(probes.learned(again), state)


def test_a_run_that_was_stopped_takes_no_step_more(begin: Make, tmp_path: Path) -> None:
    expected = train(begin(), epochs=1, batches=12)
    steps = list_steps(tmp_path)
    again = begin()
    again.load_model()
    assert train(again, epochs=1, batches=12) == expected
    assert list_steps(tmp_path) == steps
    assert again.logger.all == []


def test_more_patience_lets_a_run_go_on_that_was_stopped(begin: Make) -> None:
    assert train(begin(), epochs=1, batches=12)[1] == 10
    again = begin(patience=4)
    again.load_model()
    assert train(again, epochs=1, batches=12)[:2] == (StopReason.FINISHED, 12)
