"""Is everything closed, and the first error raised, however a run begins, ends or fails?"""

from pathlib import Path
from typing import Any

import numpy as np
import probes
import pytest

import xtrainer as xt
from xtrainer.loop import StopReason


@pytest.fixture(scope="module")
def stage() -> probes.Repeatable:
    """Gives a trainer that is compiled once for all tests of this file."""
    return probes.Repeatable(probes.traced())


def failing(hook: str, error: BaseException) -> Any:
    def act(trainer: Any, *args: Any) -> None:
        raise error

    return probes.acting(hook, act)


def broken_loader() -> Any:
    yield from probes.numbered(2)
    raise OSError("the disk is gone")


@pytest.mark.parametrize(
    "hook",
    [
        "on_training_start",
        "on_training_epoch_start",
        "on_training_step",
        "on_training_log",
        "on_validation_epoch_start",
        "on_validation_epoch_end",
        "on_training_epoch_end",
        "on_training_end",
        "on_test_epoch_start",
        "on_test_epoch_end",
    ],
)
def test_an_error_in_any_hook_closes_everything_and_is_raised(
    stage: probes.Repeatable, hook: str
) -> None:
    error = RuntimeError(hook)
    seen: list[probes.Recorder] = []
    trainer = stage.begin(
        failing(hook, error), lambda t: seen.append(probes.Recorder(t)) or seen[0]
    )
    with pytest.raises(RuntimeError, match=hook) as caught:
        trainer.train_model(
            probes.numbered(2), probes.numbered(1), probes.numbered(1), num_epochs=1
        )
    assert caught.value is error
    assert seen[0].names()[-2:] == ["on_exception", "finalize"]
    assert seen[0].calls[-2][1] == (error,) and seen[0].calls[-1][1] == ("failed",)
    assert trainer.logger.statuses == ["failed"]
    assert trainer.stop_reason is StopReason.FAILED and hook in trainer.stop_detail


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_closes_everything_too(stage: probes.Repeatable, kind: type) -> None:
    trainer = stage.begin(failing("on_training_step", kind()))
    with pytest.raises(kind):
        trainer.train_model(probes.numbered(2), num_epochs=1)
    assert trainer.logger.statuses == ["failed"]


def test_an_error_of_the_loader_is_raised_with_its_place(stage: probes.Repeatable) -> None:
    trainer = stage.begin()
    with pytest.raises(OSError, match="the disk is gone") as caught:
        trainer.train_model(broken_loader(), num_epochs=1)
    assert any("batch 3 of the 'train' loader" in note for note in caught.value.__notes__)
    assert trainer.logger.statuses == ["failed"]


def test_an_error_of_the_logger_is_raised(
    stage: probes.Repeatable, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = stage.begin()

    def fail(*args: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(trainer.logger, "log_metrics", fail)
    with pytest.raises(OSError, match="no space left"):
        trainer.train_model(probes.numbered(3), num_epochs=1)
    assert trainer.logger.statuses == ["failed"]


def test_errors_while_closing_are_noted_at_the_first_error(stage: probes.Repeatable) -> None:
    trainer = stage.begin(
        failing("on_training_step", RuntimeError("first")),
        failing("on_exception", ValueError("second")),
        failing("finalize", ValueError("third")),
    )
    with pytest.raises(RuntimeError, match="first") as caught:
        trainer.train_model(probes.numbered(2), num_epochs=1)
    assert [note for note in caught.value.__notes__ if "While closing" in note] == [
        "While closing: ValueError: second",
        "While closing: ValueError: third",
    ]
    assert trainer.logger.statuses == ["failed"]


def test_an_error_while_closing_a_good_run_is_raised_after_all_is_closed(
    stage: probes.Repeatable,
) -> None:
    trainer = stage.begin(
        failing("finalize", ValueError("first")), failing("finalize", ValueError("second"))
    )
    with pytest.raises(ValueError, match="first") as caught:
        trainer.train_model(probes.numbered(2), num_epochs=1)
    assert caught.value.__notes__ == ["Then: ValueError: second"]
    assert trainer.logger.statuses == ["completed"]


def test_a_save_under_way_is_finished_when_a_callback_fails(
    stage: probes.Repeatable, tmp_path: Path
) -> None:
    def fail_later(trainer: Any, metrics: Any, epoch: int, step: int) -> None:
        if step == 3:
            raise RuntimeError("after the save")

    checkpoint = xt.ModelCheckpointConfig(
        every_n_steps=2, log_path=str(tmp_path), save_on_exception=False
    )
    trainer = stage.begin(checkpoint, probes.acting("on_training_step", fail_later))
    with pytest.raises(RuntimeError, match="after the save"):
        trainer.train_model(probes.numbered(4), num_epochs=1)
    again = stage.begin(checkpoint)
    assert again.load_model() == 2


def test_a_failed_run_can_be_begun_again(stage: probes.Repeatable) -> None:
    trainer = stage.begin(failing("on_training_epoch_end", RuntimeError("once")))
    with pytest.raises(RuntimeError):
        trainer.train_model(probes.numbered(2), num_epochs=1)
    trainer.callbacks.clear()
    trainer.train_model(probes.numbered(2), num_train_steps=4)
    assert trainer.stop_reason is StopReason.FINISHED and trainer.global_step == 4


@pytest.mark.parametrize("loaders", [{}, {"val_loader": None, "test_loader": None}])
def test_a_run_needs_neither_validation_nor_test_nor_logger(
    stage: probes.Repeatable, loaders: dict[str, Any]
) -> None:
    trainer = stage.begin()
    trainer.init_logger(None)
    assert trainer.train_model(probes.numbered(2), num_epochs=2, **loaders) == {}
    assert trainer.stop_reason is StopReason.FINISHED


# The test at the end.


def saving(folder: Path, **config: Any) -> xt.ModelCheckpointConfig:
    return xt.ModelCheckpointConfig(
        **{"monitor": "score", "max_to_keep": None, "log_path": str(folder), **config}
    )


def scored(*scores: float) -> Any:
    """Returns what makes a callback that gives the validations these scores."""
    left = list(scores)

    def act(trainer: Any, metrics: dict[str, float], epoch: int, step: int) -> None:
        metrics["score"] = left.pop(0)

    return probes.acting("on_validation_epoch_end", act)


def validated_and_tested(trainer: Any, epochs: int = 3) -> dict[str, Any]:
    data = probes.numbered(1, first=50)
    return trainer.train_model(probes.numbered(2), data, data, num_epochs=epochs)


@pytest.mark.parametrize(
    ("scores", "best"),
    [((1.0, 0.5, 2.0), 2), ((0.1, 0.5, 2.0), 1), ((3.0, 2.0, 1.0), 3), ((1.0, np.nan, 2.0), 1)],
)
def test_the_best_model_is_tested(
    stage: probes.Repeatable, tmp_path: Path, scores: tuple[float, ...], best: int
) -> None:
    trainer = stage.begin(scored(*scores), saving(tmp_path))
    results = validated_and_tested(trainer)
    assert results["test"]["loss"] == results[f"val_epoch_{best}"]["loss"]


def test_the_largest_score_is_best_where_asked(stage: probes.Repeatable, tmp_path: Path) -> None:
    trainer = stage.begin(scored(1.0, 0.5, -2.0), saving(tmp_path, mode="max"))
    results = validated_and_tested(trainer)
    assert results["test"]["loss"] == results["val_epoch_1"]["loss"]


def test_a_test_of_the_best_model_leaves_the_state_as_the_last_step_did(
    stage: probes.Repeatable, tmp_path: Path
) -> None:
    trainer = stage.begin(scored(1.0, 2.0), saving(tmp_path))
    results = validated_and_tested(trainer, epochs=2)
    assert (
        trainer.eval_model(probes.numbered(1, first=50))["loss"] == (results["val_epoch_2"]["loss"])
    )
    assert int(trainer.state.step) == trainer.global_step == 4


def test_without_a_tracked_best_the_last_model_is_tested(
    stage: probes.Repeatable, tmp_path: Path
) -> None:
    for callbacks in ([], [saving(tmp_path, monitor=None)]):
        results = validated_and_tested(stage.begin(*callbacks), epochs=2)
        assert results["test"]["loss"] == results["val_epoch_2"]["loss"]


def test_a_run_that_was_not_finite_is_not_tested(stage: probes.Repeatable) -> None:
    trainer = stage.begin()
    data = probes.numbered(1, first=50)
    results = trainer.train_model(probes.numbered(4, bad=[3]), data, data, num_epochs=2)
    assert trainer.stop_reason is StopReason.NONFINITE
    assert results == {}
    assert trainer.logger.statuses == ["stopped"]


def test_after_a_step_that_was_not_finite_training_can_go_on(stage: probes.Repeatable) -> None:
    trainer = stage.begin()
    trainer.train_model(probes.numbered(4, bad=[3]), num_epochs=1)
    assert trainer.global_step == 2
    trainer.train_model(probes.numbered(4, first=3), num_train_steps=5)
    assert trainer.global_step == int(trainer.state.step) == 5
    assert int(trainer.state.guard.consecutive) == 0


def test_a_run_that_was_asked_to_stop_is_tested(stage: probes.Repeatable) -> None:
    trainer = stage.begin(probes.stop_at(2))
    data = probes.numbered(1, first=50)
    results = trainer.train_model(probes.numbered(4), data, data, num_epochs=2)
    assert set(results) == {"test"}
    assert trainer.logger.statuses == ["stopped"]


def test_smaller_batches_of_a_new_loader_are_not_taken_for_last_ones(
    stage: probes.Repeatable,
) -> None:
    trainer = stage.begin()
    trainer.train_model(probes.numbered(2, rows=4), num_train_steps=2)
    trainer.train_model(probes.numbered(2, rows=2), num_train_steps=4)
    assert trainer.progress.batch_rows == 2
    assert trainer.prepare_train_batch(probes.one(1, 2)).rows == 2
