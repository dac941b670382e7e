"""Errors that are named end a run, or a test, cleanly; the run goes on from there exactly."""

import itertools
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import probes
import pytest
import zoo

import xtrainer as xt
from xtrainer.checkpoint import list_steps
from xtrainer.errors import CheckpointWriteError, ConfigError, LossError, PeerError
from xtrainer.loop.always import noted
from xtrainer.trainer.exceptions import exception_problems, is_one_of

BATCHES, EPOCHS = 5, 3
VAL = probes.numbered(2, first=100)


class Enough(Exception):
    """What a run may end with."""


class EnoughData(Enough):
    """A kind of it."""


@pytest.fixture(scope="module")
def stage() -> probes.Repeatable:
    """Gives a trainer that is compiled once for all tests of this file."""
    return probes.Repeatable(probes.traced())


def begin(stage: probes.Repeatable, folder: Path | None, *callbacks: Any, **config: Any) -> Any:
    saving = []
    if folder is not None:
        saving = [xt.ModelCheckpointConfig(log_path=str(folder / "checkpoints"), save_last=False)]
    options = {"every": 2, "folder": folder, "check_val_every_n_steps": 4}
    trainer = stage.begin(*callbacks, *saving, **options)
    config = {"train_exceptions": (Enough,), "test_exceptions": (Enough,), **config}
    trainer.trainer_config = replace(trainer.trainer_config, **config)
    return trainer


def train(trainer: Any, loader: Any = None, **kwargs: Any) -> dict[str, Any]:
    loader = probes.numbered(BATCHES) if loader is None else loader
    return trainer.train_model(loader, VAL, num_epochs=EPOCHS, **kwargs)


def failing(hook: str, call: int = 2, error: Exception | None = None) -> Any:
    """Returns what makes a callback that fails from the ``call``-th call of a hook on."""
    calls = itertools.count(1)

    def act(trainer: Any, *args: Any) -> None:
        if next(calls) >= call:
            raise error or EnoughData(hook)

    return probes.acting(hook, act)


class Failing:
    """A loader that fails before one of its batches, counted over all passes."""

    def __init__(self, at: int) -> None:
        self.batches = probes.numbered(BATCHES)
        self.left = at - 1

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            if self.left == 0:
                raise Enough("data")
            self.left -= 1
            yield batch


@pytest.fixture(scope="module")
def whole(stage: probes.Repeatable, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Gives what a run without an error has learned and logged."""
    folder = tmp_path_factory.mktemp("whole")
    trainer = begin(stage, folder)
    results = train(trainer)
    return probes.learned(trainer), results, zoo.rows_of(folder, "train")


@pytest.mark.parametrize(
    "hook", ["on_training_step", "on_training_log", "on_training_epoch_end", "on_epoch_logged",
             "on_validation_epoch_start", "on_validation_epoch_end"],
)  # fmt: skip
def test_an_error_of_a_callback_ends_the_run_and_it_goes_on_from_there(
    stage: probes.Repeatable, tmp_path: Path, whole: Any, hook: str
) -> None:
    trainer = begin(stage, tmp_path, failing(hook, 7 if hook == "on_training_step" else 2))
    results = train(trainer)
    assert trainer.stop_reason is xt.StopReason.EXCEPTION
    assert trainer.stop_detail == f"EnoughData('{hook}')"
    assert list_steps(tmp_path / "checkpoints")[-1] == trainer.global_step < 15
    assert results.items() <= whole[1].items()
    again = begin(stage, tmp_path)
    assert train(again).items() <= whole[1].items()
    probes.assert_same_course(probes.learned(again), whole[0])
    assert zoo.rows_of(tmp_path, "train") == whole[2]


def test_an_error_of_the_loader_ends_the_run_with_the_steps_before_it(
    stage: probes.Repeatable, tmp_path: Path, whole: Any
) -> None:
    trainer = begin(stage, tmp_path)
    results = train(trainer, Failing(8))
    assert trainer.stop_reason is xt.StopReason.EXCEPTION and trainer.global_step == 7
    assert list(results) == ["val_step_4", "val_epoch_1"]
    again = begin(stage, tmp_path)
    train(again)
    probes.assert_same_course(probes.learned(again), whole[0])


def test_what_was_returned_is_what_was_found_until_then_and_the_test_comes_after_it(
    stage: probes.Repeatable, whole: Any
) -> None:
    recorder: list[probes.Recorder] = []

    def record(trainer: Any) -> probes.Recorder:
        recorder.append(probes.Recorder(trainer))
        return recorder[0]

    trainer = begin(stage, None, record, failing("on_training_step", 9))
    results = train(trainer, test_loader=VAL)
    assert list(results) == ["val_step_4", "val_epoch_1", "val_step_8", "test"]
    assert results["val_epoch_1"] == whole[1]["val_epoch_1"]
    names = recorder[0].names()
    assert names[-4:] == ["on_training_end", "on_test_epoch_start", "on_test_epoch_end", "finalize"]
    assert "on_exception" not in names
    assert trainer.logger.statuses == ["stopped"] and not trainer.stop_reason.completed


def test_before_the_first_step_nothing_has_begun_that_would_be_ended(
    stage: probes.Repeatable, tmp_path: Path
) -> None:
    recorder = probes.Recorder(stage.trainer)
    trainer = begin(stage, tmp_path, lambda trainer: recorder)
    assert train(trainer, Failing(1)) == {}
    assert trainer.stop_reason is xt.StopReason.EXCEPTION and trainer.global_step == 0
    assert recorder.names() == ["finalize"] and list_steps(tmp_path / "checkpoints") == []


def test_an_error_of_the_loss_ends_the_run() -> None:
    class Unwilling(zoo.Classifier):
        def loss_function(self, *args: Any, **kwargs: Any) -> Any:
            if self.willing:
                return super().loss_function(*args, **kwargs)
            raise Enough("loss")

        willing = True

    trainer = zoo.make_trainer(Unwilling, train_exceptions=(Enough,), debug=True)
    trainer.willing = False
    assert trainer.train_model(zoo.loader(), num_epochs=1) == {}
    assert trainer.stop_reason is xt.StopReason.EXCEPTION and trainer.global_step == 0


def test_the_first_reason_to_stop_is_kept(stage: probes.Repeatable) -> None:
    def act(trainer: Any, *args: Any) -> None:
        trainer.request_stop(detail="before")
        raise Enough

    trainer = begin(stage, None, probes.acting("on_training_step", act))
    train(trainer)
    assert trainer.stop_reason is xt.StopReason.REQUESTED and trainer.stop_detail == "before"


@pytest.mark.parametrize(
    "error", [KeyError("x"), LossError("x"), Exception("x"), CheckpointWriteError("x")]
)
def test_other_errors_are_raised_as_ever(stage: probes.Repeatable, error: Exception) -> None:
    trainer = begin(
        stage,
        None,
        failing("on_training_step", 3, error),
        train_exceptions=(Enough, ValueError, OSError),
    )
    with pytest.raises(type(error)) as caught:
        train(trainer)
    assert caught.value is error and trainer.stop_reason is xt.StopReason.FAILED


def test_where_more_has_failed_the_end_is_not_clean(stage: probes.Repeatable) -> None:
    error = Enough("hook")

    def act(trainer: Any, *args: Any) -> None:
        with noted(error):
            raise OSError("the rest")
        raise error

    trainer = begin(stage, None, probes.acting("on_training_step", act))
    with pytest.raises(Enough):
        train(trainer)
    assert trainer.stop_reason is xt.StopReason.FAILED


# Tests.


@pytest.mark.parametrize("hook", ["on_test_epoch_start", "on_test_epoch_end"])
def test_a_test_may_end_without_metrics(
    stage: probes.Repeatable, caplog: pytest.LogCaptureFixture, hook: str
) -> None:
    trainer = begin(stage, None, failing(hook, 1))
    with caplog.at_level(logging.WARNING):
        results = train(trainer, test_loader=VAL)
    assert "test" not in results and "val_epoch_3" in results
    assert trainer.stop_reason is xt.StopReason.FINISHED
    assert f"The test ends, as test_exceptions says, because of EnoughData('{hook}')" in caplog.text
    assert trainer.test_model(VAL, apply_callbacks=True) == {}


def test_a_test_loader_may_end_the_test(stage: probes.Repeatable) -> None:
    trainer = begin(stage, None)
    assert trainer.test_model(Failing(2)) == {}
    assert trainer.test_model(VAL).keys() == {"loss", "id"}
    with pytest.raises(Enough):
        trainer.eval_model(Failing(2))
    trainer.trainer_config = replace(trainer.trainer_config, test_exceptions=(KeyError,))
    with pytest.raises(Enough):
        trainer.test_model(Failing(2))


# Which classes.


@pytest.mark.parametrize(
    "kind", [Exception, xt.XTrainerError, PeerError, ConfigError, CheckpointWriteError]
)
def test_errors_after_which_no_end_is_clean_are_refused(kind: type[Exception]) -> None:
    (found,) = exception_problems("train_exceptions", (kind, Enough))
    assert found.startswith(f"train_exceptions: found {kind.__name__}, after which")
    assert not is_one_of(PeerError(), (kind,)) or kind in (Exception, xt.XTrainerError)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, int, Enough(), "Enough"])
def test_what_is_no_class_of_errors_is_refused(kind: Any) -> None:
    with pytest.raises(ConfigError, match="trainer.test_exceptions"):
        xt.check_configs(trainer=xt.TrainerConfig(test_exceptions=(kind,)))


def test_classes_are_not_saved_and_a_checkpoint_is_evaluated_without_them(
    stage: probes.Repeatable, tmp_path: Path
) -> None:
    trainer = begin(stage, tmp_path)
    train(trainer)
    saved = trainer.trainer_config.to_dict()
    assert saved["train_exceptions"] == [{"not_saved": "Enough"}]
    with pytest.raises(ConfigError, match="Enough could not be saved"):
        xt.Config.from_dict(xt.TrainerConfig, saved)
    config = probes.Traced.load_from_checkpoint(tmp_path).trainer_config
    assert (config.train_exceptions, config.test_exceptions) == ((), ())
