"""Which moments of a run can be hooked into? Those of checkpoints, and all of them in order."""

from pathlib import Path
from typing import Any

import probes
import pytest

import xtrainer as xt
from xtrainer.checkpoint import list_steps

VAL = probes.numbered(1, first=100)
SAVES = ("on_checkpoint", "on_best_checkpoint")


def recorder(hooks: tuple[str, ...] = SAVES) -> tuple[list[probes.Recorder], Any]:
    """Returns a list, and what makes a recorder that is put into it."""
    made: list[probes.Recorder] = []

    def make(trainer: Any) -> probes.Recorder:
        made.append(probes.Recorder(trainer, hooks=hooks))
        return made[-1]

    return made, make


def scored(*scores: float) -> Any:
    """Returns what makes a callback that gives the n-th validation the n-th score."""
    left = list(scores)
    add = lambda trainer, metrics, *_: metrics.update(score=left.pop(0))  # noqa: E731
    return probes.acting("on_validation_epoch_end", add)


def test_saves_and_the_best_of_them_are_told(stage: probes.Repeatable, tmp_path: Path) -> None:
    made, make = recorder()
    config = xt.ModelCheckpointConfig(monitor="score", mode="max", log_path=str(tmp_path))
    trainer = stage.begin(scored(1.0, 3.0, float("nan"), 2.0), config, make)
    trainer.train_model(probes.numbered(2), VAL, num_epochs=4)
    assert made[0].calls == [
        ("on_checkpoint", (2,)),
        ("on_best_checkpoint", (2,)),
        ("on_checkpoint", (4,)),
        ("on_best_checkpoint", (4,)),
        ("on_checkpoint", (6,)),
        ("on_checkpoint", (8,)),
    ]
    assert list_steps(tmp_path) == [4, 6, 8]


def test_a_step_that_turns_out_to_be_the_best_after_its_save_is_told_then(
    stage: probes.Repeatable, tmp_path: Path
) -> None:
    made, make = recorder((*SAVES, "on_validation_epoch_end"))
    config = xt.ModelCheckpointConfig(monitor="score", every_n_steps=2, log_path=str(tmp_path))
    trainer = stage.begin(scored(1.0), config, make)
    trainer.train_model(probes.numbered(2), VAL, num_epochs=1)
    assert made[0].names() == ["on_checkpoint", "on_validation_epoch_end", "on_best_checkpoint"]


def test_without_a_monitored_metric_none_is_the_best(
    stage: probes.Repeatable, tmp_path: Path
) -> None:
    made, make = recorder()
    trainer = stage.begin(xt.ModelCheckpointConfig(log_path=str(tmp_path)), make)
    trainer.train_model(probes.numbered(3), num_train_steps=3)
    assert made[0].calls == [("on_checkpoint", (3,))]


def test_a_save_that_fails_and_may_is_not_told(
    stage: probes.Repeatable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xtrainer.checkpoint import CheckpointManager
    from xtrainer.errors import CheckpointWriteError

    save = CheckpointManager.save

    def fail_once(self: Any, step: int, *args: Any) -> Any:
        if step == 2:
            raise CheckpointWriteError("no space left")
        return save(self, step, *args)

    monkeypatch.setattr(CheckpointManager, "save", fail_once)
    made, make = recorder()
    config = xt.ModelCheckpointConfig(max_failed_saves=1, log_path=str(tmp_path))
    trainer = stage.begin(config, make)
    trainer.train_model(probes.numbered(2), VAL, num_epochs=2)
    assert made[0].calls == [("on_checkpoint", (4,))]


def test_an_error_in_such_a_hook_ends_the_run(stage: probes.Repeatable, tmp_path: Path) -> None:
    def fail(trainer: Any, step: int) -> None:
        raise RuntimeError("not told")

    config = xt.ModelCheckpointConfig(log_path=str(tmp_path))
    trainer = stage.begin(config, probes.acting("on_checkpoint", fail))
    with pytest.raises(RuntimeError, match="not told"):
        trainer.train_model(probes.numbered(1), VAL, num_epochs=1)
    assert trainer.stop_reason is xt.StopReason.FAILED


def test_the_trainer_has_these_hooks_too(stage: probes.Repeatable, tmp_path: Path) -> None:
    trainer = stage.begin(xt.ModelCheckpointConfig(monitor="loss", log_path=str(tmp_path)))
    told: list[tuple[str, int]] = []
    for hook in SAVES:
        setattr(trainer, hook, lambda step, hook=hook: told.append((hook, step)))
    try:
        trainer.train_model(probes.numbered(1), VAL, num_epochs=1)
    finally:
        for hook in SAVES:
            delattr(trainer, hook)
    assert told == [("on_checkpoint", 1), ("on_best_checkpoint", 1)]


# What Ludwig's callbacks are told (L20), under the names here.

LUDWIG = {
    "on_train_start": "on_training_start",
    "on_epoch_start": "on_training_epoch_start",
    "on_batch_end": "on_training_step",
    "on_evaluation_start": "on_validation_epoch_start",
    "on_validation_start": "on_validation_epoch_start",
    "on_validation_end": "on_validation_epoch_end",
    "on_evaluation_end": "on_epoch_logged",
    "on_save_best_checkpoint": "on_best_checkpoint",
    "on_trainer_train_teardown": "finalize",
    "on_eval_end": "on_validation_epoch_end",
    "on_test_start": "on_test_epoch_start",
    "on_test_end": "on_test_epoch_end",
    "on_epoch_end": "on_training_epoch_end",
    "on_train_end": "on_training_end",
}


@pytest.mark.parametrize("is_main", [True, False])
def test_one_callback_is_told_of_every_moment_on_all_processes_or_on_the_main_one(
    stage: probes.Repeatable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_main: bool
) -> None:
    monkeypatch.setattr("xtrainer.callbacks.base.is_main_process", lambda: is_main)
    made: dict[bool, probes.Recorder] = {}

    class Told(xt.CallbackConfig):
        def create(self, trainer: Any, data_module: Any = None) -> xt.Callback:
            one = probes.Recorder(trainer, hooks=tuple({**LUDWIG, "": "on_checkpoint"}.values()))
            made[self.main_process_only] = one
            return one

    trainer = stage.begin()
    saving = xt.ModelCheckpointConfig(monitor="loss", log_path=str(tmp_path))
    trainer.init_callbacks([Told(), Told(main_process_only=True), saving])
    trainer.train_model(probes.numbered(2), VAL, VAL, num_epochs=1)
    assert made[False].names() == [
        "on_training_start",
        "on_training_epoch_start",
        "on_training_step",
        "on_training_step",
        "on_training_epoch_end",
        "on_epoch_logged",
        "on_validation_epoch_start",
        "on_validation_epoch_end",
        "on_epoch_logged",
        "on_checkpoint",
        "on_best_checkpoint",
        "on_training_end",
        "on_test_epoch_start",
        "on_test_epoch_end",
        "finalize",
    ]
    assert set(made[False].names()) == {*LUDWIG.values(), "on_checkpoint"}
    assert (True in made) is is_main
    if is_main:
        assert made[True].names() == made[False].names()
