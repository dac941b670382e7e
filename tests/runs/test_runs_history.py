"""What a trainer can say of its metrics: all rows of the run, also after a resume and a return."""

from pathlib import Path
from typing import Any

import probes
import pytest
import zoo

import xtrainer as xt

VAL = probes.numbered(1, first=100)


@pytest.fixture(scope="module")
def stage() -> probes.Repeatable:
    """Gives a trainer that is compiled once for all tests of this file."""
    return probes.Repeatable(probes.traced())


def told(trainer: Any, mode: str) -> list[tuple[int, dict[str, float]]]:
    """Returns the rows of the history without what measures time."""
    return [
        (row.step, {k: v for k, v in row.metrics.items() if not k.endswith("time_s")})
        for row in trainer.history.get(mode, [])
    ]


def test_the_history_is_what_the_loggers_were_given(stage: probes.Repeatable) -> None:
    trainer = stage.begin(every=2)
    trainer.train_model(probes.numbered(5), VAL, VAL, num_epochs=2)
    assert list(trainer.history) == ["train", "train_epoch", "val", "test"]
    for mode in trainer.history:
        assert told(trainer, mode) == trainer.logger.rows(mode)
    assert [row.step for row in trainer.history["train"]] == [2, 4, 6, 8, 10]
    assert [row.epoch for row in trainer.history["val"]] == [1, 2]
    assert trainer.history["test"][0].step == 10
    losses = trainer.history.series("val", "loss")
    assert losses == dict(zip([5, 10], trainer.logger.column("loss", "val"), strict=True))


def test_a_run_without_any_logger_has_its_history(stage: probes.Repeatable) -> None:
    trainer = stage.begin()
    trainer.logger = xt.LoggerTool()
    trainer.train_model(probes.numbered(3), VAL, num_epochs=1)
    assert [row.step for row in trainer.history["train"]] == [1, 2, 3]
    assert list(trainer.history) == ["train", "train_epoch", "val"]


def test_what_callbacks_add_is_there_too(stage: probes.Repeatable) -> None:
    add = lambda trainer, metrics, *_: metrics.update(score=4)  # noqa: E731
    trainer = stage.begin(probes.acting("on_validation_epoch_end", add))
    trainer.train_model(probes.numbered(1), VAL, num_epochs=1)
    assert trainer.history.series("val", "score") == {1: 4.0}


def test_a_later_call_goes_on_with_the_history(stage: probes.Repeatable) -> None:
    trainer = stage.begin(every=2)
    trainer.train_model(probes.numbered(3), VAL, num_epochs=1)
    trainer.train_model(probes.numbered(3), VAL, num_epochs=2)
    assert [row.step for row in trainer.history["train_epoch"]] == [3, 6]
    assert [row.step for row in trainer.history["train"]] == [2, 3, 4, 6]


@pytest.mark.parametrize("stop", [3, 5, 6])
def test_after_a_resume_the_history_is_that_of_an_unbroken_run(
    stage: probes.Repeatable, tmp_path: Path, stop: int
) -> None:
    checkpoint = xt.ModelCheckpointConfig(enable_async_checkpointing=False)
    data = lambda: shuffled(8)  # noqa: E731
    whole = stage.begin(checkpoint, every=2, folder=tmp_path / "whole")
    whole.train_model(data(), VAL, num_epochs=2)
    expected = {mode: told(whole, mode) for mode in ("train", "train_epoch", "val")}

    broken = stage.begin(probes.stop_at(stop), checkpoint, every=2, folder=tmp_path / "broken")
    broken.train_model(data(), VAL, num_epochs=2)
    again = stage.begin(checkpoint, every=2, folder=tmp_path / "broken")
    again.train_model(data(), VAL, num_epochs=2)
    assert {mode: told(again, mode) for mode in expected} == expected


def shuffled(rows: int) -> xt.ArrayLoader:
    """Returns a loader of ``rows`` rows in batches of two."""
    return xt.ArrayLoader(probes.examples(rows), batch_size=2, shuffle=True)


def test_a_checkpoint_that_is_loaded_brings_the_history_up_to_its_step(
    stage: probes.Repeatable, tmp_path: Path
) -> None:
    checkpoint = xt.ModelCheckpointConfig(max_to_keep=None)
    trainer = stage.begin(checkpoint, every=2, folder=tmp_path)
    trainer.train_model(shuffled(8), VAL, num_epochs=3)
    fresh = stage.begin(checkpoint, every=2, folder=tmp_path)
    fresh.load_model(8)
    assert list(fresh.history.series("val", "loss")) == [4, 8]
    assert list(fresh.history.series("train", "loss_mean")) == [2, 4, 6, 8]


def test_another_folder_brings_no_rows_of_its_files(
    stage: probes.Repeatable, tmp_path: Path
) -> None:
    checkpoint = xt.ModelCheckpointConfig()
    trainer = stage.begin(checkpoint, every=2, folder=tmp_path / "one")
    trainer.train_model(shuffled(8), VAL, num_epochs=1)
    other = stage.begin(checkpoint, every=2, folder=tmp_path / "two")
    other.train_model(shuffled(8), VAL, num_epochs=2, resume=tmp_path / "one")
    assert [row.step for row in other.history["val"]] == [4, 8]
    assert [row.step for row in other.history["train"]] == [6, 8]


def test_rows_that_a_rollback_takes_back_are_forgotten(tmp_path: Path) -> None:
    trainer = probes.traced(
        nonfinite_policy="rollback",
        max_consecutive_nonfinite=1,
        logger=zoo.file_logger(tmp_path),
        callbacks=[xt.ModelCheckpointConfig(every_n_steps=2)],
    )
    trainer.train_model(probes.numbered(6, bad=[5]), VAL, num_epochs=1)
    assert trainer.progress.rollbacks
    assert told(trainer, "train") == list(zoo.rows_of(tmp_path, "train").items())
    assert told(trainer, "val") == list(zoo.rows_of(tmp_path, "val").items())
