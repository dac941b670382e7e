"""A step that is not finite: named, harmless, and the run can go on from before it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import probes
import pytest
import zoo

import xtrainer as xt
from xtrainer.checkpoint import list_steps
from xtrainer.loop import StopReason

VAL = probes.numbered(1, first=100)
EPOCH, STEPS = 5, 15
RHYTHM = {"num_epochs": 3, "steps_per_epoch": EPOCH}


def loader(bad: Sequence[int] = (), value: float = np.nan) -> xt.ArrayLoader:
    """Returns a batch for each step of three epochs; those of the steps ``bad`` hold ``value``."""
    batches = [probes.one(step) for step in range(1, STEPS + 1)]
    arrays = jax.tree.map(lambda *leaves: np.concatenate(leaves), *batches)
    for step in bad:
        arrays["inputs"][probes.ROWS * (step - 1) + 1, 2] = value
    return xt.ArrayLoader(arrays, batch_size=probes.ROWS)


def parts(trainer: Any) -> Any:
    state = trainer.state
    return zoo.host((state.params, state.opt_state, state.mutable_variables))


@pytest.fixture(scope="module")
def after(stage: probes.Repeatable) -> dict[int, Any]:
    """What a finite run has learned after each of its steps."""
    learned = {}

    def keep(trainer: Any, *args: Any) -> None:
        learned[trainer.global_step] = parts(trainer)

    trainer = stage.begin(probes.acting("on_training_step", keep))
    learned[0] = parts(trainer)
    trainer.train_model(loader(), **RHYTHM)
    assert trainer.global_step == STEPS
    return learned


@pytest.mark.parametrize("max_steps_in_flight", [1, 2, 4])
@pytest.mark.parametrize("every", [1, 7, 1000])
@pytest.mark.parametrize("bad", [1, 3, 5, 6, 8, 15])
def test_the_run_stops_as_the_last_finite_step_left_it(
    stage: probes.Repeatable,
    after: dict[int, Any],
    bad: int,
    every: int,
    max_steps_in_flight: int,
) -> None:
    trainer = stage.begin(every=every, max_steps_in_flight=max_steps_in_flight)
    results = trainer.train_model(loader([bad]), VAL, VAL, **RHYTHM)
    assert trainer.stop_reason is StopReason.NONFINITE
    assert f"Step {bad} was not finite" in trainer.stop_detail
    assert trainer.global_step == int(trainer.state.step) == bad - 1
    zoo.assert_same(parts(trainer), after[bad - 1])
    full = (bad - 1) // EPOCH
    assert list(results) == [f"val_epoch_{epoch}" for epoch in range(1, full + 1)]
    assert (trainer.progress.epochs_done, trainer.progress.step_in_epoch) == divmod(bad - 1, EPOCH)
    assert trainer.progress.examples == (bad - 1) * probes.ROWS
    rows = [step for step in range(1, bad) if step % every == 0 or step == bad - 1]
    assert trainer.logger.steps() == rows
    values = [value for _, row in trainer.logger.rows() for value in row.values()]
    assert np.isfinite(values).all()
    assert not any("skipped_steps" in row for _, row in trainer.logger.rows())
    assert trainer.logger.statuses == ["stopped"]


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinities_count(stage: probes.Repeatable, after: dict[int, Any], value: float) -> None:
    trainer = stage.begin()
    trainer.train_model(loader([4], value), **RHYTHM)
    assert (trainer.stop_reason, trainer.global_step) == (StopReason.NONFINITE, 3)
    zoo.assert_same(parts(trainer), after[3])


@pytest.mark.parametrize("max_steps_in_flight", [1, 4])
@pytest.mark.parametrize("rhythm", [2, 4])
def test_a_step_that_is_not_finite_is_not_validated(
    stage: probes.Repeatable, rhythm: int, max_steps_in_flight: int
) -> None:
    trainer = stage.begin(
        check_val_every_n_steps=rhythm, max_steps_in_flight=max_steps_in_flight, every=1000
    )
    results = trainer.train_model(loader([4]), VAL, **RHYTHM)
    assert list(results) == [f"val_step_{step}" for step in range(rhythm, 4, rhythm)]


@pytest.mark.parametrize("max_steps_in_flight", [1, 4])
def test_a_step_that_is_not_finite_is_not_saved(
    stage: probes.Repeatable, tmp_path: Path, max_steps_in_flight: int
) -> None:
    saving = xt.ModelCheckpointConfig(log_path=str(tmp_path), every_n_steps=2, max_to_keep=None)
    trainer = stage.begin(saving, max_steps_in_flight=max_steps_in_flight, every=1000)
    trainer.train_model(loader([6]), **RHYTHM)
    assert list_steps(tmp_path) == [2, 4, 5]


@pytest.mark.parametrize("every", [1, 3, 7])
@pytest.mark.parametrize("max_steps_in_flight", [1, 4])
@pytest.mark.parametrize("bad", [1, 3, 5, 6])
def test_with_clean_data_the_run_goes_on_as_if_nothing_had_happened(
    stage: probes.Repeatable, after: dict[int, Any], bad: int, max_steps_in_flight: int, every: int
) -> None:
    recorder = probes.Recorder(stage.trainer, hooks=("on_training_epoch_end",))
    trainer = stage.begin(
        lambda trainer: recorder, every=every, max_steps_in_flight=max_steps_in_flight
    )
    batches = loader([bad])
    trainer.train_model(batches, VAL, **RHYTHM)
    batches.arrays["inputs"][:] = loader().arrays["inputs"]
    trainer.train_model(batches, VAL, **RHYTHM)
    assert trainer.stop_reason is StopReason.FINISHED
    assert (trainer.global_step, trainer.progress.epochs_done) == (STEPS, 3)
    assert trainer.progress.skipped == int(trainer.state.guard.skipped) == 0
    zoo.assert_same(parts(trainer), after[STEPS])
    steps = trainer.logger.steps()
    assert steps == sorted(set(steps))
    assert recorder.at("on_training_epoch_end") == [(1,), (2,), (3,)]


def test_an_untouched_loader_stops_the_run_again(
    stage: probes.Repeatable, after: dict[int, Any]
) -> None:
    trainer, batches = stage.begin(), loader([4])
    for _ in range(3):
        trainer.train_model(batches, **RHYTHM)
        assert (trainer.stop_reason, trainer.global_step) == (StopReason.NONFINITE, 3)
        assert "Step 4 was" in trainer.stop_detail
    zoo.assert_same(parts(trainer), after[3])
    assert trainer.logger.column("id") == [1, 2, 3]


def test_the_step_that_ended_a_run_is_no_skipped_one_of_the_next(
    stage: probes.Repeatable,
) -> None:
    trainer = stage.begin()
    trainer.train_model(loader([4]), **RHYTHM)
    assert trainer.progress.skipped == 1
    trainer.train_model(loader(), num_train_steps=3)
    assert trainer.stop_reason is StopReason.NOTHING_TO_DO
    assert trainer.progress.skipped == int(trainer.state.guard.skipped) == 0


def test_a_list_is_put_back_behind_the_last_finite_batch(stage: probes.Repeatable) -> None:
    trainer, batches = stage.begin(max_steps_in_flight=4), probes.numbered(9, bad=[4])
    trainer.train_model(batches, num_epochs=1)
    batches[3] = probes.one(4)
    trainer.train_model(batches, num_epochs=1)
    assert trainer.logger.column("id") == [1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_an_iterator_goes_on_with_what_it_has_left(stage: probes.Repeatable) -> None:
    trainer, batches = stage.begin(), probes.generate(probes.numbered(9, bad=[4]))
    trainer.train_model(batches, num_epochs=1)
    assert trainer.stop_reason is StopReason.NONFINITE
    trainer.train_model(batches, num_epochs=1)
    assert trainer.stop_reason is StopReason.FINISHED
    assert trainer.logger.column("id")[-1] == 9
    assert trainer.global_step == len(trainer.logger.steps())


@pytest.mark.parametrize("max_steps_in_flight", [1, 4])
def test_a_refused_step_outranks_a_stop_that_was_asked_for(
    stage: probes.Repeatable, max_steps_in_flight: int
) -> None:
    trainer = stage.begin(probes.stop_at(4), max_steps_in_flight=max_steps_in_flight)
    trainer.train_model(loader([4]), **RHYTHM)
    assert (trainer.stop_reason, trainer.global_step) == (StopReason.NONFINITE, 3)


def test_after_an_error_progress_is_that_of_the_state(
    stage: probes.Repeatable, after: dict[int, Any]
) -> None:
    # The error comes up while the steps 7 to 9 are in flight, of which 7 was not finite.
    def fail(trainer: Any, *args: Any) -> None:
        if trainer.global_step == 9:
            raise ValueError("planted")

    trainer = stage.begin(probes.acting("on_training_step", fail), max_steps_in_flight=4)
    batches = loader([7])
    with pytest.raises(ValueError, match="planted"):
        trainer.train_model(batches, **RHYTHM)
    assert trainer.global_step == int(trainer.state.step) == 6
    assert trainer.logger.column("id") == [1, 2, 3, 4, 5, 6]
    trainer.callbacks.clear()
    batches.arrays["inputs"][:] = loader().arrays["inputs"]
    trainer.train_model(batches, **RHYTHM)
    zoo.assert_same(parts(trainer), after[STEPS])


# The policy "skip": refused steps are counted, and a row of them ends the run.


@pytest.mark.parametrize("max_steps_in_flight", [1, 4])
def test_skipped_steps_change_nothing_but_the_count(
    skipping: probes.Repeatable, after: dict[int, Any], max_steps_in_flight: int
) -> None:
    trainer = skipping.begin(max_steps_in_flight=max_steps_in_flight)
    trainer.train_model(loader([4, 5]), num_train_steps=5)
    assert trainer.stop_reason is StopReason.FINISHED
    assert (trainer.global_step, int(trainer.state.step)) == (5, 5)
    assert trainer.progress.skipped == 2
    zoo.assert_same(parts(trainer), after[3])


def test_a_run_with_skipped_steps_is_completed(skipping: probes.Repeatable) -> None:
    trainer = skipping.begin()
    results = trainer.train_model(loader([2, 3, 5, 10, 11]), VAL, **RHYTHM)
    assert trainer.stop_reason is StopReason.FINISHED
    assert list(results) == ["val_epoch_1", "val_epoch_2", "val_epoch_3"]
    assert (trainer.global_step, trainer.progress.skipped) == (STEPS, 5)
    assert trainer.logger.column("id") == [1, 4, 6, 7, 8, 9, 12, 13, 14, 15]
    assert trainer.logger.column("id", "train_epoch") == [2.5, 7.5, 13.5]


@pytest.mark.parametrize("max_steps_in_flight", [1, 4])
@pytest.mark.parametrize("rhythm", [-1, 1, 4])
def test_rows_count_the_steps_skipped_up_to_their_own(
    skipping: probes.Repeatable, rhythm: int, max_steps_in_flight: int
) -> None:
    trainer = skipping.begin(
        every=3, check_val_every_n_steps=rhythm, max_steps_in_flight=max_steps_in_flight
    )
    trainer.train_model(loader([4, 5, 9, 13]), VAL, **RHYTHM)
    rows = trainer.logger.rows()
    assert [(step, row.get("skipped_steps")) for step, row in rows] == [
        (3, None), (6, 2.0), (9, 3.0), (12, 3.0), (15, 4.0),
    ]  # fmt: skip


@pytest.mark.parametrize("every", [1, 7, 1000])
@pytest.mark.parametrize("max_steps_in_flight", [1, 2, 4])
@pytest.mark.parametrize("first", [1, 4, 6])
def test_too_many_in_a_row_end_the_run(
    skipping: probes.Repeatable,
    after: dict[int, Any],
    first: int,
    max_steps_in_flight: int,
    every: int,
) -> None:
    trainer = skipping.begin(every=every, max_steps_in_flight=max_steps_in_flight)
    trainer.train_model(loader(range(first, STEPS + 1)), **RHYTHM)
    assert trainer.stop_reason is StopReason.NONFINITE
    assert f"Steps {first} to {first + 2} were not finite" in trainer.stop_detail
    assert trainer.global_step == int(trainer.state.step) == first + 1
    zoo.assert_same(parts(trainer), after[first - 1])


def test_a_finite_step_in_between_begins_a_new_row(skipping: probes.Repeatable) -> None:
    trainer = skipping.begin()
    trainer.train_model(loader([1, 2, 4, 5, 7, 8, 10, 11, 13, 14]), **RHYTHM)
    assert trainer.stop_reason is StopReason.FINISHED
    assert trainer.progress.skipped == 10


def test_the_row_of_skipped_steps_is_counted_over_calls(skipping: probes.Repeatable) -> None:
    trainer, batches = skipping.begin(), loader([4, 5, 6])
    trainer.train_model(batches, num_train_steps=5)
    trainer.train_model(batches, **RHYTHM)
    assert trainer.stop_reason is StopReason.NONFINITE
    assert "Steps 4 to 6 were" in trainer.stop_detail


def test_after_too_many_a_run_with_clean_data_goes_on(
    skipping: probes.Repeatable, after: dict[int, Any]
) -> None:
    trainer, batches = skipping.begin(), loader([4, 5, 6])
    trainer.train_model(batches, **RHYTHM)
    batches.arrays["inputs"][:] = loader().arrays["inputs"]
    trainer.train_model(batches, **RHYTHM)
    assert trainer.stop_reason is StopReason.FINISHED
    assert (trainer.global_step, trainer.progress.skipped) == (STEPS, 2)
    assert trainer.logger.column("id") == [1, 2, 3, *range(6, 16)]


# check_for_nan=False: nothing stops, and nothing is harmed.


def test_without_the_check_a_run_never_stops_and_nothing_is_harmed(
    careless: probes.Repeatable, after: dict[int, Any]
) -> None:
    trainer = careless.begin()
    results = trainer.train_model(loader(range(4, STEPS + 1)), VAL, **RHYTHM)
    assert trainer.stop_reason is StopReason.FINISHED
    assert len(results) == 3
    assert (trainer.global_step, trainer.progress.skipped) == (STEPS, STEPS - 3)
    zoo.assert_same(parts(trainer), after[3])


def test_a_state_that_was_halted_goes_on_under_another_policy(
    stage: probes.Repeatable, careless: probes.Repeatable
) -> None:
    halted = stage.begin()
    halted.train_model(loader([4]), **RHYTHM)
    trainer = careless.begin()
    trainer.state, trainer.progress = halted.state, halted.progress
    trainer.train_model(loader([1]), num_train_steps=5)
    assert (trainer.global_step, int(trainer.state.step)) == (5, 5)
    assert trainer.progress.skipped == 1
