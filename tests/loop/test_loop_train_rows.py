"""Which rows are logged, over which steps, and when they reach the disk."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import probes
import pytest
import zoo

import xtrainer as xt
from xtrainer.loop import StopReason

VAL = probes.numbered(1, first=100)
SIZES = (4, 2, 3, 4, 1, 4, 4)


def unequal() -> list[probes.Batch]:
    return [probes.one(number, rows) for number, rows in enumerate(SIZES, start=1)]


def numpy_mean(steps: range) -> float:
    """Returns the mean id of the examples of some steps of epochs of ``unequal`` batches."""
    numbers = [(step - 1) % len(SIZES) for step in steps]
    return float(np.average([n + 1 for n in numbers], weights=[SIZES[n] for n in numbers]))


@pytest.mark.parametrize("every", [1, 2, 3, 7, 50])
def test_there_is_one_row_for_every_so_many_steps_and_one_for_the_rest(
    stage: probes.Repeatable, every: int
) -> None:
    trainer = stage.begin(every=every)
    trainer.train_model(unequal(), num_epochs=2)
    last = 2 * len(SIZES)
    expected = [step for step in range(1, last + 1) if step % every == 0 or step == last]
    assert trainer.logger.steps() == expected


@pytest.mark.parametrize("every", [1, 2, 3, 7, 50])
def test_a_row_is_the_mean_over_the_examples_of_exactly_its_steps(
    stage: probes.Repeatable, every: int
) -> None:
    trainer = stage.begin(every=every)
    trainer.train_model(unequal(), num_epochs=2)
    before = 0
    for step, row in trainer.logger.rows():
        assert row["id"] == pytest.approx(numpy_mean(range(before + 1, step + 1)), rel=1e-6)
        before = step


def test_losses_of_longer_rows_are_those_of_single_steps_weighted(
    stage: probes.Repeatable,
) -> None:
    single, several = stage.begin(every=1), None
    single.train_model(unequal(), num_epochs=1)
    losses = single.logger.column("loss_mean")
    several = stage.begin(every=3)
    several.train_model(unequal(), num_epochs=1)
    groups = [(0, 3), (3, 6), (6, 7)]
    expected = [np.average(losses[a:b], weights=SIZES[a:b]) for a, b in groups]
    np.testing.assert_allclose(several.logger.column("loss_mean"), expected, rtol=1e-6)


@pytest.mark.parametrize("epochs", [{}, {"steps_per_epoch": 2}, {"steps_per_epoch": 5}])
@pytest.mark.parametrize("rhythm", [-1, 1, 3, 4])
def test_rows_do_not_depend_on_validations_and_ends_of_epochs(
    stage: probes.Repeatable, rhythm: int, epochs: dict[str, int]
) -> None:
    plain = stage.begin(every=3, check_val_every_n_epoch=-1)
    plain.train_model(unequal(), num_train_steps=14)
    expected = plain.logger.rows()
    trainer = stage.begin(every=3, check_val_every_n_steps=rhythm)
    trainer.train_model(unequal(), VAL, num_train_steps=14, **epochs)
    found = trainer.logger.rows()
    assert [step for step, _ in found] == [step for step, _ in expected]
    for (_, row), (_, other) in zip(found, expected, strict=True):
        assert row == pytest.approx(other, rel=1e-6)


def test_epoch_metrics_are_the_means_over_the_examples_of_the_epoch(
    stage: probes.Repeatable,
) -> None:
    single = stage.begin(every=1)
    single.train_model(unequal(), num_epochs=2)
    losses = np.reshape(single.logger.column("loss_mean"), (2, -1))
    trainer = stage.begin(every=4, check_val_every_n_steps=3)
    trainer.train_model(unequal(), VAL, num_epochs=2)
    expected = np.average(losses, axis=1, weights=SIZES)
    np.testing.assert_allclose(trainer.logger.column("loss", "train_epoch"), expected, rtol=1e-6)
    assert trainer.logger.column("id", "train_epoch") == pytest.approx(
        [numpy_mean(range(1, 8))] * 2
    )


def test_an_epochs_metrics_are_those_its_hook_is_given(stage: probes.Repeatable) -> None:
    recorder = probes.Recorder(stage.trainer, hooks=("on_training_epoch_end",))
    trainer = stage.begin(lambda trainer: recorder)
    trainer.train_model(unequal(), num_epochs=1)
    (_, (metrics, epoch)), *_ = recorder.calls
    assert epoch == 1
    logged = next(row for mode, _, _, row in trainer.logger.all if mode == "train_epoch")
    assert metrics == logged
    assert metrics["epoch_time_s"] > 0


def test_a_step_hook_is_given_the_newest_row(stage: probes.Repeatable) -> None:
    recorder = probes.Recorder(stage.trainer, hooks=("on_training_step",))
    trainer = stage.begin(lambda trainer: recorder, every=2)
    trainer.train_model(probes.numbered(6), num_epochs=1)
    seen = [metrics.get("id") for _, (metrics, _, _) in recorder.calls]
    assert seen == [None, None, None, 1.5, 1.5, 3.5]


def test_a_row_has_the_epoch_of_its_last_step(stage: probes.Repeatable) -> None:
    trainer = stage.begin(every=2)
    trainer.train_model(probes.numbered(3), num_epochs=3)
    rows = [(step, epoch) for mode, step, epoch, _ in trainer.logger.all if mode == "train"]
    assert rows == [(2, 1), (4, 2), (6, 2), (8, 3), (9, 3)]


def test_validations_have_the_epoch_and_step_they_came_at(stage: probes.Repeatable) -> None:
    trainer = stage.begin(check_val_every_n_steps=2)
    trainer.train_model(probes.numbered(3), VAL, num_epochs=2)
    rows = [(step, epoch) for mode, step, epoch, _ in trainer.logger.all if mode == "val"]
    assert rows == [(2, 1), (3, 1), (4, 2), (6, 2)]


def test_a_call_that_ends_between_two_rows_logs_what_it_has(stage: probes.Repeatable) -> None:
    trainer, batches = stage.begin(every=4), probes.numbered(9)
    for steps in (6, 9):
        trainer.train_model(batches, num_train_steps=steps)
    assert trainer.logger.steps() == [4, 6, 8, 9]
    assert trainer.logger.column("id") == [2.5, 5.5, 7.5, 9.0]


@pytest.mark.parametrize("hook", ["on_training_step", "on_training_epoch_end"])
def test_rows_are_on_disk_while_training_goes_on(
    stage: probes.Repeatable, tmp_path: Path, hook: str
) -> None:
    on_disk: list[list[int]] = []
    read: Callable[..., Any] = lambda trainer, *args: on_disk.append(  # noqa: E731
        [row["step"] for row in xt.read_metrics(tmp_path) if row["set"] == "train"]
        if (tmp_path / "metrics.jsonl").exists()
        else []
    )
    trainer = stage.begin(probes.acting(hook, read), folder=tmp_path, every=2)
    trainer.train_model(probes.numbered(6), num_epochs=2)
    if hook == "on_training_epoch_end":
        assert on_disk == [[2, 4, 6], [2, 4, 6, 8, 10, 12]]
    else:
        # A row is written when the next one is full.
        assert on_disk[:6] == [[], [], [], [2], [2], [2, 4]]


def test_validation_metrics_are_on_disk_before_the_next_step(
    stage: probes.Repeatable, tmp_path: Path
) -> None:
    seen: dict[int, list[int]] = {}

    def read(trainer: Any, *args: Any) -> None:
        seen[trainer.global_step] = list(zoo.rows_of(tmp_path, "val"))

    trainer = stage.begin(
        probes.acting("on_training_step", read), folder=tmp_path, check_val_every_n_steps=2
    )
    trainer.train_model(probes.numbered(4), VAL, num_epochs=1)
    assert seen == {1: [], 2: [2], 3: [2], 4: [2, 4]}


def test_each_set_has_a_table_beside_the_rows(stage: probes.Repeatable, tmp_path: Path) -> None:
    trainer = stage.begin(folder=tmp_path)
    trainer.train_model(probes.numbered(2), VAL, VAL, num_epochs=1)
    tables = {path.stem.removeprefix("metrics_") for path in tmp_path.glob("metrics_*.csv")}
    assert tables == {"train", "train_epoch", "val", "test"}
    assert (tmp_path / "config.json").is_file()


@pytest.mark.parametrize("end", [{"num_epochs": 2}, {"num_train_steps": 7}])
def test_metrics_that_are_always_one_are_logged_as_one(
    stage: probes.Repeatable, end: dict[str, int]
) -> None:
    batches = [{**batch, "ids": np.ones_like(batch["ids"])} for batch in unequal()]
    trainer = stage.begin(every=3, check_val_every_n_steps=2)
    trainer.train_model(batches, batches, batches, **end)
    assert trainer.stop_reason is StopReason.FINISHED
    for mode in ("train", "train_epoch", "val", "test"):
        assert set(trainer.logger.column("id", mode)) == {1.0}
