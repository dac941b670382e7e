"""Are the rows of a run that failed and went on those of an unbroken one, to the last bit?"""

import dataclasses
from pathlib import Path
from typing import Any

import probes
import pytest
import zoo

import xtrainer as xt
from xtrainer.checkpoint import list_steps
from xtrainer.errors import CheckpointNotFoundError, ConfigError, NoUsableCheckpointError
from xtrainer.loggers.file import SUPERSEDED_FILE
from xtrainer.loop import StopReason
from xtrainer.trainer import saving

STEPS = 11
SAVING = xt.ModelCheckpointConfig(
    every_n_steps=3, every_n_epochs=99, max_to_keep=None, save_on_exception=False
)  # an error stands for a kill here


class Planted(Exception):
    """Raised by a test."""


def fail_at(step: int) -> Any:
    """Returns what makes a callback that fails at a step."""

    def act(trainer: Any, *args: Any) -> None:
        if trainer.global_step == step:
            raise Planted

    return probes.acting("on_training_step", act)


@pytest.fixture(scope="module")
def stage() -> probes.Repeatable:
    """Gives a trainer with BatchNorm and dropout, compiled once."""
    return probes.Repeatable(probes.traced())


def train(
    stage: probes.Repeatable,
    folder: Path,
    *callbacks: Any,
    every: int = 4,
    saves: bool = False,
    **options: Any,
) -> Any:
    """Runs eleven steps in passes of five batches, the last of them smaller."""
    saving = dataclasses.replace(SAVING, save_on_exception=saves)
    trainer = stage.begin(*callbacks, saving, folder=folder, every=every, check_val_every_n_steps=2)
    data = [*probes.numbered(4), probes.one(5, rows=2)]
    val = probes.numbered(2, first=100)
    trainer.train_model(data, val, num_train_steps=STEPS, **options)
    return trainer


@pytest.mark.parametrize("every", [1, 4, 50])
@pytest.mark.parametrize("failures", [(4,), (5,), (8, 7, 10), (10, 10, 10), (2, 3, 6, 9, 11)])
def test_rows_and_state_are_those_of_an_unbroken_run(
    stage: probes.Repeatable, tmp_path: Path, failures: tuple[int, ...], every: int
) -> None:
    end = probes.learned(train(stage, tmp_path / "whole", every=every))
    for step in failures:
        with pytest.raises(Planted):
            train(stage, tmp_path / "broken", fail_at(step), every=every)
    trainer = train(stage, tmp_path / "broken", every=every)
    probes.assert_same_course(probes.learned(trainer), end)
    assert probes.all_rows(tmp_path / "broken") == probes.all_rows(tmp_path / "whole")


@pytest.mark.parametrize("every", [1, 4, 50])
def test_rows_and_state_are_the_same_where_each_failure_was_saved(
    stage: probes.Repeatable, tmp_path: Path, every: int
) -> None:
    end = probes.learned(train(stage, tmp_path / "whole", every=every))
    for step in (2, 3, 5, 6, 9, 10, 11):
        with pytest.raises(Planted):
            train(stage, tmp_path / "broken", fail_at(step), every=every, saves=True)
    trainer = train(stage, tmp_path / "broken", every=every, saves=True)
    probes.assert_same_course(probes.learned(trainer), end)
    assert probes.all_rows(tmp_path / "broken") == probes.all_rows(tmp_path / "whole")


def test_rows_that_were_left_are_kept_in_a_file_of_their_own(
    stage: probes.Repeatable, tmp_path: Path
) -> None:
    with pytest.raises(Planted):
        train(stage, tmp_path, fail_at(8), every=1)
    train(stage, tmp_path, every=1)
    retired = (tmp_path / SUPERSEDED_FILE).read_text().splitlines()
    assert len(retired) >= 2  # steps 7 and 8


def test_the_time_of_all_parts_is_added_up(stage: probes.Repeatable, tmp_path: Path) -> None:
    with pytest.raises(Planted):
        train(stage, tmp_path, fail_at(8))
    trainer = train(stage, tmp_path)
    ledger = trainer.ledger
    assert ledger.earlier["step"] > 0
    assert ledger.to_json()["step"] == ledger.earlier["step"] + ledger.seconds["step"]


def test_a_return_within_a_process_counts_no_second_twice(
    stage: probes.Repeatable, tmp_path: Path
) -> None:
    trainer = train(stage, tmp_path)
    before = dict(trainer.ledger.earlier)
    trainer.load_model()
    assert trainer.ledger.earlier == before


# How a run is told where to go on.


def test_never_begins_anew_and_supersedes_what_was_there(
    stage: probes.Repeatable, tmp_path: Path
) -> None:
    train(stage, tmp_path)
    with pytest.raises(Planted):
        train(stage, tmp_path, fail_at(8), resume="never")
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert {"superseded-9", "superseded-11", "3", "6"} <= names
    assert "superseded-6" not in names
    train(stage, tmp_path)
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"3", "6", "9", "11", "RUN.json"}


@pytest.mark.parametrize("resume", [6, "6"])
def test_a_step_is_gone_on_from(
    stage: probes.Repeatable, tmp_path: Path, resume: int | str
) -> None:
    end = probes.learned(train(stage, tmp_path))
    rows = probes.all_rows(tmp_path)
    trainer = train(stage, tmp_path, resume=resume)
    probes.assert_same_course(probes.learned(trainer), end)
    assert probes.all_rows(tmp_path) == rows
    assert list_steps(tmp_path / "checkpoints") == [3, 6, 9, 11]


def test_must_needs_a_checkpoint(stage: probes.Repeatable, tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="resume='must': found no checkpoint"):
        train(stage, tmp_path, resume="must")
    with pytest.raises(Planted):
        train(stage, tmp_path, fail_at(8))
    train(stage, tmp_path, resume="must")


def test_the_folder_of_another_run_is_gone_on_from_and_left_alone(
    stage: probes.Repeatable, tmp_path: Path
) -> None:
    with pytest.raises(Planted):
        train(stage, tmp_path / "first", fail_at(8))
    before = zoo.files_in(tmp_path / "first")
    trainer = train(stage, tmp_path / "second", resume=tmp_path / "first")
    assert zoo.files_in(tmp_path / "first") == before
    probes.assert_same_course(
        probes.learned(trainer), probes.learned(train(stage, tmp_path / "whole"))
    )


@pytest.mark.parametrize("resume", [True, None, 1.5])
def test_anything_else_is_refused(stage: probes.Repeatable, tmp_path: Path, resume: Any) -> None:
    with pytest.raises(ConfigError, match="expected 'auto', 'must', 'never', a step or a folder"):
        train(stage, tmp_path, resume=resume)


def test_a_finished_run_has_nothing_to_do(stage: probes.Repeatable, tmp_path: Path) -> None:
    train(stage, tmp_path)
    rows = probes.all_rows(tmp_path)
    trainer = train(stage, tmp_path)
    assert trainer.stop_reason is StopReason.NOTHING_TO_DO
    assert probes.all_rows(tmp_path) == rows


def damage(folder: Path, *steps: int) -> None:
    for step in steps:
        path = folder / "checkpoints" / str(step) / "meta.json"
        content = bytearray(path.read_bytes())
        content[100] ^= 1
        path.write_bytes(content)


def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(
    stage: probes.Repeatable, tmp_path: Path
) -> None:
    end = probes.learned(train(stage, tmp_path / "whole"))
    with pytest.raises(Planted):
        train(stage, tmp_path / "broken", fail_at(10))
    damage(tmp_path / "broken", 9)
    trainer = train(stage, tmp_path / "broken")
    probes.assert_same_course(probes.learned(trainer), end)
    assert probes.all_rows(tmp_path / "broken") == probes.all_rows(tmp_path / "whole")
    assert (tmp_path / "broken" / "checkpoints" / "corrupt-9").is_dir()


def test_where_all_are_damaged_the_run_does_not_begin_anew(
    stage: probes.Repeatable, tmp_path: Path
) -> None:
    train(stage, tmp_path)
    damage(tmp_path, 3, 6, 9, 11)
    before = zoo.files_in(tmp_path)
    with pytest.raises(NoUsableCheckpointError, match="4 checkpoints and none that is usable"):
        train(stage, tmp_path)
    assert zoo.files_in(tmp_path) == before
    assert stage.trainer.global_step == 0


def test_another_runs_damaged_checkpoint_is_passed_over_and_left_alone(
    stage: probes.Repeatable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(stage, tmp_path)
    damage(tmp_path, 11)
    before = zoo.files_in(tmp_path)
    trainer = stage.begin()
    with caplog.at_level("WARNING"):
        assert trainer.load_pretrained_model(tmp_path) == 9
    assert "11 is damaged and was passed over" in caplog.text
    assert zoo.files_in(tmp_path) == before


def test_a_step_that_ends_every_start_at_once_is_gone_back_from(
    stage: probes.Repeatable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    end = probes.learned(train(stage, tmp_path / "whole"))
    folder = tmp_path / "broken"
    with pytest.raises(Planted):
        train(stage, folder, fail_at(10))

    def poisoned(trainer: Any, *args: Any) -> None:
        if trainer.global_step == 9:
            raise Planted

    bad = probes.acting("on_training_epoch_start", poisoned)
    for _ in range(2):
        with pytest.raises(Planted):
            train(stage, folder, bad)
        assert list_steps(folder / "checkpoints") == [3, 6, 9]
    trainer = train(stage, folder, bad)
    assert (
        "failed with step 9 before they took a step, so this one goes on from step 6" in caplog.text
    )
    probes.assert_same_course(probes.learned(trainer), end)
    assert probes.all_rows(folder) == probes.all_rows(tmp_path / "whole")
    assert not (folder / "checkpoints" / "FAILED.json").exists()


def test_where_there_is_no_other_step_the_one_is_tried_again(
    stage: probes.Repeatable, tmp_path: Path
) -> None:
    with pytest.raises(Planted):
        train(stage, tmp_path, fail_at(4))
    bad = probes.acting("on_training_epoch_start", lambda trainer, *args: 1 / 0)
    for _ in range(4):
        with pytest.raises(ZeroDivisionError):
            train(stage, tmp_path, bad)
    train(stage, tmp_path)
    assert stage.trainer.global_step == STEPS


def test_other_numerics_are_told(
    stage: probes.Repeatable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(Planted):
        train(stage, tmp_path, fail_at(4))
    before = saving.numerics()
    monkeypatch.setattr(saving, "numerics", lambda: {**before, "jax_enable_x64": True})
    train(stage, tmp_path)
    assert "jax_enable_x64: False then, True now" in caplog.text


@pytest.mark.parametrize("every", [1, 2, 3, 5, 50])
@pytest.mark.parametrize("bad", [1, 3, 5])  # no save is due at the step before
def test_rows_go_on_where_a_step_that_was_not_finite_has_ended_a_run(
    stage: probes.Repeatable, tmp_path: Path, bad: int, every: int
) -> None:
    end = probes.learned(train(stage, tmp_path / "whole", every=every))
    options = {"check_val_every_n_steps": 2, "max_steps_in_flight": 4}
    trainer = stage.begin(SAVING, folder=tmp_path / "broken", every=every, **options)
    data = [*probes.numbered(4, bad=(bad,)), probes.one(5, rows=2, bad=(bad,))]
    trainer.train_model(data, probes.numbered(2, first=100), num_train_steps=STEPS)
    assert (trainer.stop_reason, trainer.global_step) == (StopReason.NONFINITE, bad - 1)
    trainer = train(stage, tmp_path / "broken", every=every)
    probes.assert_same_course(probes.learned(trainer), end)
    assert probes.all_rows(tmp_path / "broken") == probes.all_rows(tmp_path / "whole")
