"""How far a run is: all that a training state of another trainer tells, also after a resume."""

from pathlib import Path
from typing import Any

import probes
import pytest

import xtrainer as xt
from xtrainer.checkpoint import find_last_checkpoint, read_meta
from xtrainer.loop import Ledger
from xtrainer.state import Progress

BATCHES = 5
VAL = probes.numbered(2, first=100)
STATE = {
    "current_iteration": lambda trainer: trainer.progress.updates,
    "global_iteration": lambda trainer: trainer.progress.step,
    "global_epoch": lambda trainer: trainer.progress.epochs_done,
    "validation_cycles": lambda trainer: trainer.progress.validations,
    "dataset_iter": lambda trainer: trainer.progress.step_in_epoch,
    "early_stop_count": lambda trainer: trainer.evaluations_without_improvement,
    "running_iter": lambda trainer: trainer.progress.steps_since_validation,
}
"""Helios's names; ``average_iter_time`` is ``trainer.mean_step_s``."""


@pytest.fixture(scope="module")
def stage() -> probes.Repeatable:
    """Gives a trainer that goes on after a step that is not finite."""
    return probes.Repeatable(probes.traced(check_for_nan=False))


def begin(stage: probes.Repeatable, folder: Path, *callbacks: Any) -> Any:
    return stage.begin(
        *callbacks,
        xt.EarlyStoppingConfig(monitor="id", mode="min", patience=9),
        xt.ModelCheckpointConfig(log_path=str(folder / "checkpoints")),
        folder=folder,
        check_val_every_n_steps=4,
    )


def test_a_training_state_is_told_and_goes_on_with_the_run(
    stage: probes.Repeatable, tmp_path: Path
) -> None:
    def state(trainer: Any) -> dict[str, int]:
        return {name: tell(trainer) for name, tell in STATE.items()}

    trainer = begin(stage, tmp_path, probes.stop_at(7))
    trainer.train_model(probes.numbered(BATCHES, bad=[3]), VAL, num_epochs=3)
    told = {
        "current_iteration": 6,  # step 3 was refused
        "global_iteration": 7,
        "global_epoch": 1,
        "validation_cycles": 2,  # of step 4 and of epoch 1
        "dataset_iter": 2,
        "early_stop_count": 1,
        "running_iter": 2,  # since step 5
    }
    assert state(trainer) == told
    seconds = trainer.ledger.to_json()["step"]
    assert trainer.mean_step_s == pytest.approx(seconds / 7) and seconds > 0

    again = begin(stage, tmp_path)
    assert set(state(again).values()) == {0}
    again.load_model()
    assert state(again) == told
    assert again.mean_step_s >= read_meta(find_last_checkpoint(tmp_path))["ledger"]["step"] / 7
    again.train_model(probes.numbered(BATCHES, bad=[3]), VAL, num_epochs=3)
    assert (again.progress.validations, again.progress.validated_at) == (6, 15)
    assert state(again)["running_iter"] == 0


def test_without_early_stopping_nothing_is_waited_for(stage: probes.Repeatable) -> None:
    assert stage.begin().evaluations_without_improvement == 0


def test_a_checkpoint_of_before_says_nothing_of_its_validation() -> None:
    old = Progress(step=9, validations=2, validated_at=8).to_json()
    del old["validated_at"]
    progress = Progress.from_json(old)
    assert (progress.validated_at, progress.steps_since_validation) == (0, 9)


def test_steps_of_another_run_are_not_counted_for_the_time_of_this_one() -> None:
    times = iter([0.0, 6.0, 6.0, 6.0])
    ledger = Ledger(lambda: next(times))
    ledger.steps_before = 100.0
    with ledger.spent("step"):
        pass
    assert ledger.mean_step_s(100) == 0.0 and ledger.mean_step_s(103) == 2.0
    again = Ledger()
    again.load_json(ledger.to_json())
    assert again.mean_step_s(103) == 2.0
