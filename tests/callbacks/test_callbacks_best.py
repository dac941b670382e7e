"""What is known of the best evaluation, and is its model the trainer's where that is asked for?"""

import shutil
from pathlib import Path
from typing import Any

import probes
import pytest
import zoo

import xtrainer as xt
from xtrainer.checkpoint import list_steps
from xtrainer.config import check_configs
from xtrainer.errors import ConfigError

NEAR, FAR = probes.numbered(1, first=100), probes.numbered(1, first=200)
SETS = {"near": NEAR, "far": FAR}


def scored(*scores: float) -> Any:
    """Returns what makes a callback that gives the n-th validation the n-th score."""
    left = list(scores)
    add = lambda trainer, metrics, *_: metrics.update(score=left.pop(0))  # noqa: E731
    return probes.acting("on_validation_epoch_end", add)


def saving(folder: Path, **config: Any) -> xt.ModelCheckpointConfig:
    return xt.ModelCheckpointConfig(
        **{"monitor": "score", "mode": "max", "log_path": str(folder), **config}
    )


def data() -> xt.ArrayLoader:
    return xt.ArrayLoader(probes.examples(8), batch_size=4, shuffle=True)


def test_the_metrics_of_all_sets_are_remembered_with_step_epoch_and_checkpoint(
    stage: probes.Repeatable, tmp_path: Path
) -> None:
    trainer = stage.begin(scored(1.0, 3.0, 2.0), saving(tmp_path))
    results = trainer.train_model(data(), SETS, num_epochs=3)
    best = trainer.progress.best["score"]
    assert (best["value"], best["step"], best["epoch"]) == (3.0, 4, 2)
    checkpoint = trainer.progress.best_checkpoints["score"]
    assert checkpoint == str(tmp_path / "4") and Path(checkpoint).is_dir()
    of_training = dict(trainer.logger.rows("train_epoch"))[4]
    assert best["metrics"] == {  # no measured times
        **results["val_epoch_2"],
        **{f"train/{name}": value for name, value in of_training.items()},
    }
    assert {"near_loss", "far_loss", "score", "train/loss"} <= best["metrics"].keys()


def test_it_is_known_after_a_resume_also_where_the_run_was_moved(
    stage: probes.Repeatable, tmp_path: Path
) -> None:
    first = stage.begin(scored(3.0, 1.0), saving(tmp_path / "here"))
    first.train_model(data(), SETS, num_epochs=2)
    known = dict(first.progress.best["score"])
    shutil.move(tmp_path / "here", tmp_path / "there")
    second = stage.begin(scored(2.0), saving(tmp_path / "there"))
    second.load_model()
    assert second.progress.best["score"] == known
    assert second.progress.best_checkpoints == {"score": str(tmp_path / "there" / "2")}
    second.train_model(data(), SETS, num_epochs=3)
    assert second.progress.best["score"]["step"] == 2


def test_a_step_that_was_saved_before_it_was_known_to_be_the_best(
    stage: probes.Repeatable, tmp_path: Path
) -> None:
    config = saving(tmp_path, every_n_steps=2, every_n_epochs=1)
    trainer = stage.begin(scored(1.0, 2.0, 0.0), config)
    trainer.train_model(data(), SETS, num_epochs=3)
    assert trainer.progress.best["score"]["step"] == 4
    assert trainer.callbacks[-1].best_step() == 4
    trainer.callbacks[-1].finalize("completed")


def test_a_value_that_is_not_finite_is_not_remembered(
    stage: probes.Repeatable, tmp_path: Path
) -> None:
    trainer = stage.begin(scored(float("nan"), float("inf"), 1.0), saving(tmp_path))
    trainer.train_model(data(), SETS, num_epochs=3)
    assert trainer.progress.best["score"]["step"] == 6


# The best model at the end.


def test_on_request_the_state_is_that_of_the_best_after_the_test(
    stage: probes.Repeatable, tmp_path: Path
) -> None:
    states: list[Any] = []
    keep = lambda trainer, *_: states.append(zoo.host(trainer.state))  # noqa: E731
    trainer = stage.begin(
        probes.acting("on_validation_epoch_end", keep),
        scored(1.0, 3.0, 2.0),
        saving(tmp_path, restore_best=True),
    )
    results = trainer.train_model(data(), SETS, NEAR, num_epochs=3)
    zoo.assert_same(trainer.state, states[1])
    assert trainer.global_step == 4 and trainer.stop_reason is xt.StopReason.FINISHED
    assert trainer.progress.best_checkpoints["score"] == str(tmp_path / "4")
    assert results["test"]["loss"] == results["val_epoch_2"]["near_loss"]
    assert list(trainer.history.series("val", "score")) == [2, 4, 6]  # all of the run
    assert list_steps(tmp_path) == [4, 6]  # so that the same command has nothing to do


def test_a_later_call_goes_on_from_the_best(stage: probes.Repeatable, tmp_path: Path) -> None:
    config = saving(tmp_path / "a", restore_best=True)
    trainer = stage.begin(scored(1.0, 3.0, 2.0), config)
    trainer.train_model(data(), SETS, num_epochs=3)
    trainer.callbacks[0] = scored(2.0)(trainer)
    loader = data()
    trainer.train_model(loader, SETS, num_epochs=3)
    assert list(trainer.history.series("val", "score").items()) == [(2, 1.0), (4, 3.0), (6, 2.0)]
    # The best is still that of step 4, which is loaded again.
    assert trainer.global_step == 4
    without = stage.begin(scored(1.0, 3.0, 2.0), saving(tmp_path / "b"))
    without.train_model(data(), SETS, num_epochs=3)
    assert without.global_step == 6
    without.load_model("best")
    zoo.assert_same(without.state, trainer.state)


@pytest.mark.parametrize("scores", [(1.0, 2.0), (float("nan"), float("nan"))])
def test_where_the_last_or_none_is_the_best_nothing_is_loaded(
    stage: probes.Repeatable, tmp_path: Path, scores: tuple[float, ...]
) -> None:
    trainer = stage.begin(scored(*scores), saving(tmp_path, restore_best=True))
    trainer.train_model(data(), SETS, num_epochs=2)
    assert trainer.global_step == 4


def test_a_run_that_was_interrupted_stays_where_it_was(
    stage: probes.Repeatable, tmp_path: Path
) -> None:
    stop = lambda trainer, *_: (  # noqa: E731
        trainer.request_stop(xt.StopReason.INTERRUPTED) if trainer.global_step == 4 else None
    )
    trainer = stage.begin(
        scored(3.0, 1.0),
        probes.acting("on_epoch_logged", stop),
        saving(tmp_path, restore_best=True),
    )
    trainer.train_model(data(), SETS, num_epochs=3)
    assert trainer.global_step == 4 and trainer.progress.best["score"]["step"] == 2


def test_the_best_of_nothing_cannot_be_restored(tmp_path: Path) -> None:
    config = xt.TrainerConfig(callbacks=[saving(tmp_path, monitor=None, restore_best=True)])
    with pytest.raises(ConfigError, match="restore_best: found True with monitor=None"):
        check_configs(trainer=config)
