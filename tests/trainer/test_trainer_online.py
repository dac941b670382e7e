"""Is a pass of updates over new data that of an epoch, and does the epoch under way not notice?"""

from pathlib import Path

import numpy as np
import probes
import pytest
import zoo

import xtrainer as xt
from xtrainer.errors import LoaderError


@pytest.fixture(scope="module")
def stage() -> probes.Repeatable:
    return probes.Repeatable(probes.traced())


@pytest.fixture(autouse=True)
def no_thread_is_left() -> object:
    """Fails a test that leaves a thread reading a loader."""
    yield
    assert probes.prefetch_threads() == []


def test_a_pass_equals_an_epoch_of_training_to_the_bit(stage: probes.Repeatable) -> None:
    loader = lambda: xt.ArrayLoader(probes.examples(22), 4, shuffle=True, drop_last=True)  # noqa: E731
    trainer = stage.begin(every=2)
    trainer.train_model(loader(), num_epochs=1)
    epoch, rows = zoo.host(trainer.state), trainer.logger.rows()
    (_, means) = trainer.logger.rows("train_epoch")[0]
    trainer = stage.begin(every=2)
    with zoo.compilations() as compiled:
        found = trainer.train_online(loader())
    zoo.assert_same(trainer.state, epoch)
    assert found == means and trainer.logger.rows() == rows
    assert trainer.logger.rows("train_epoch") == []
    assert trainer.stop_reason is xt.StopReason.FINISHED
    assert compiled["train_step"] == 0


def test_epochs_and_the_training_loader_go_on_where_they_were(stage: probes.Repeatable) -> None:
    trainer, loader = stage.begin(), probes.numbered(5)
    trainer.train_model(loader, num_train_steps=7)
    before = trainer.progress.to_json()
    trainer.train_online(probes.numbered(3, first=100))
    counted = {"step": 10, "examples": 40}
    assert trainer.progress.to_json() == {**before, **counted}
    assert trainer.sources.positions()["train"].batches == 2
    trainer.train_model(loader, num_epochs=2)
    ids = [1, 2, 3, 4, 5, 1, 2, 100, 101, 102, 3, 4, 5]
    assert trainer.logger.column("id") == ids
    assert (trainer.progress.epochs_done, trainer.global_step) == (2, 13)


def test_hooks_of_epochs_are_left_out(stage: probes.Repeatable) -> None:
    trainer = stage.begin(recorder := lambda t: probes.Recorder(t), every=2)
    trainer.train_online(probes.numbered(2))
    (recorder,) = trainer.callbacks
    steps = ["on_training_step", "on_training_step", "on_training_log"]
    assert recorder.names() == ["on_training_start", *steps, "on_training_end", "finalize"]


def test_nothing_is_saved_and_the_callback_stays(stage: probes.Repeatable, tmp_path: Path) -> None:
    saves = xt.ModelCheckpointConfig(monitor=None, every_n_steps=1, log_path=str(tmp_path))
    trainer = stage.begin(saves)
    kept = list(trainer.callbacks)
    trainer.train_online(probes.numbered(3))
    assert list(tmp_path.rglob("*")) == []
    assert trainer.callbacks == kept
    trainer.train_model(probes.numbered(4), num_epochs=1)
    saved = sorted(path.name for path in tmp_path.iterdir() if path.name.isdecimal())
    assert saved == ["6", "7"]


def test_a_restored_run_learns_and_goes_on_without_being_restored_again(
    stage: probes.Repeatable, tmp_path: Path
) -> None:
    saves = xt.ModelCheckpointConfig(monitor=None, every_n_steps=1)
    trainer = stage.begin(saves, folder=tmp_path)
    trainer.train_model(probes.numbered(5), num_train_steps=2)
    trainer = stage.begin(saves, folder=tmp_path)
    assert trainer.load_model() == 2
    trainer.train_online(probes.numbered(3, first=100))
    learned = zoo.host(trainer.state.params)
    trainer.train_model(probes.numbered(5), num_train_steps=6)
    ids = [row["metrics"]["id"] for row in probes.all_rows(tmp_path) if row["set"] == "train"]
    assert ids == [1, 2, 100, 101, 102, 3]
    assert [row["step"] for row in probes.all_rows(tmp_path)][:6] == [1, 2, 3, 4, 5, 6]
    with pytest.raises(AssertionError):
        zoo.assert_same(trainer.state.params, learned)  # one more step


def test_the_guard_ends_a_pass_with_the_means_of_what_was_learned(
    stage: probes.Repeatable,
) -> None:
    trainer = stage.begin()
    before = trainer.progress.to_json()
    found = trainer.train_online(probes.numbered(4, bad=(3,)))
    assert trainer.stop_reason is xt.StopReason.NONFINITE
    assert (found["id"], trainer.global_step) == (1.5, 2)
    assert trainer.progress.to_json() == {**before, "step": 2, "examples": 8, "skipped": 1}


def test_a_pass_goes_back_to_no_checkpoint(tmp_path: Path) -> None:
    saves = [xt.ModelCheckpointConfig(monitor=None, log_path=str(tmp_path))]
    limits = {"nonfinite_policy": "rollback", "max_consecutive_nonfinite": 1}
    trainer = probes.traced(callbacks=saves, **limits)
    found = trainer.train_online(probes.numbered(4, bad=(3,)))
    assert (found["id"], trainer.stop_reason) == (1.5, xt.StopReason.NONFINITE)
    assert list(tmp_path.rglob("*")) == []
    trainer.train_model(probes.numbered(4), num_epochs=1)
    assert trainer.stop_reason is xt.StopReason.FINISHED
    assert (trainer.progress.rollbacks, trainer.global_step) == ([], 6)


def test_a_callback_may_end_a_pass(stage: probes.Repeatable) -> None:
    trainer = stage.begin(probes.stop_at(2))
    assert trainer.train_online(probes.numbered(4))["id"] == 1.5
    assert trainer.stop_reason is xt.StopReason.REQUESTED
    assert (trainer.progress.epochs_done, trainer.progress.step_in_epoch) == (0, 0)


def test_a_loader_is_read_from_its_beginning_and_an_iterator_to_its_end(
    stage: probes.Repeatable,
) -> None:
    trainer, loader = stage.begin(), probes.numbered(2)
    trainer.train_online(loader)
    trainer.train_online(loader)
    assert trainer.train_online(probes.generate(probes.numbered(3, first=10)))["id"] == 11
    assert trainer.logger.column("id") == [1, 2, 1, 2, 10, 11, 12]


def test_a_pass_of_nothing_is_an_error(stage: probes.Repeatable) -> None:
    trainer = stage.begin()
    with pytest.raises(LoaderError, match="'online' loader gave no batch"):
        trainer.train_online([])
    assert trainer.progress == xt.Progress()


def test_an_error_in_a_pass_leaves_the_epoch_as_it_was(stage: probes.Repeatable) -> None:
    trainer, loader = stage.begin(), probes.numbered(5)
    trainer.train_model(loader, num_train_steps=7)
    broken = [*probes.numbered(2), {"inputs": np.zeros(3), "targets": np.zeros(2)}]
    with pytest.raises(xt.XTrainerError):
        trainer.train_online(broken)
    progress = trainer.progress
    assert (progress.epochs_done, progress.step_in_epoch) == (1, 2)
    trainer.train_model(loader, num_epochs=2)
    assert trainer.logger.column("id")[-3:] == [3, 4, 5]
