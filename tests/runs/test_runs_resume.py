"""Does a run that was ended and begun again go on as if nothing had happened?"""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import probes
import pytest
import zoo

import xtrainer as xt
from xtrainer.loop import StopReason

STEPS, EPOCH = 6, 4


SAVING = (
    xt.LearningRateMonitorConfig(),
    xt.ModelCheckpointConfig(monitor="loss", max_to_keep=None),
)


def trainer_of(folder: Path) -> Any:
    """Returns a new trainer with BatchNorm, dropout, AdamW, a schedule and accumulation."""
    return zoo.make_trainer(
        model={"batch_norm": True, "dropout": 0.2},
        optimizer=xt.OptimizerConfig(
            name="adamw",
            weight_decay=0.01,
            scheduler=xt.SchedulerConfig(
                name="cosine_decay", lr=0.05, warmup_steps=2, decay_steps=10
            ),
        ),
        gradient_accumulate_steps=2,
        check_val_every_n_steps=2,
        logger=zoo.file_logger(folder),
        callbacks=list(SAVING),
    )


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> probes.Repeatable:
    """Gives such a trainer, compiled once, that can begin again in another folder."""
    return probes.Repeatable(trainer_of(tmp_path_factory.mktemp("unused")))


@pytest.fixture(scope="module")
def plain() -> probes.Repeatable:
    """Gives a plain trainer on one device."""
    return probes.Repeatable(zoo.make_trainer(mesh=zoo.devices(1)))


def train(trainer: Any, stop: int = STEPS, **options: Any) -> Any:
    loader, test = zoo.loader(64, shuffle=True, seed=7), zoo.loader(21)
    return trainer.train_model(loader, zoo.loader(24), test, num_train_steps=stop, **options)


@pytest.fixture(scope="module")
def runs(
    stage: probes.Repeatable, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SimpleNamespace]:
    """Gives one run of six steps, and one that was stopped in its first epoch, after step 3.

    The second was gone on with by a new trainer.
    """
    folder = tmp_path_factory.mktemp("resume")
    whole = stage.begin(*SAVING, folder=folder / "whole", check_val_every_n_steps=2)
    results = train(whole)
    end = probes.learned(whole)
    first = stage.begin(
        *SAVING, probes.stop_at(3), folder=folder / "parts", check_val_every_n_steps=2
    )
    first_results = train(first)
    stop = (first.stop_reason, first.global_step)
    second = trainer_of(folder / "parts")
    with zoo.compilations() as compiled:  # the step is compiled while the state is read
        loaded = second.load_model()
        restored = second.state
        second_results = train(second)
    yield SimpleNamespace(
        folder=folder, end=end, stop=stop, second=second, loaded=loaded, restored=restored,
        results=results, first_results=first_results, second_results=second_results,
        compiled=compiled,
    )  # fmt: skip


def begin(stage: probes.Repeatable, folder: Path) -> Any:
    """Returns the trainer as it was when it was new, with the callbacks of the runs."""
    return stage.begin(*SAVING, folder=folder, check_val_every_n_steps=2)


def test_a_stopped_run_says_so_and_saves_its_last_step(runs: SimpleNamespace) -> None:
    assert runs.stop == (StopReason.REQUESTED, 3)
    assert runs.loaded == 3


def test_state_and_progress_end_bit_for_bit_where_an_unbroken_run_ends(
    runs: SimpleNamespace,
) -> None:
    probes.assert_same_course(probes.learned(runs.second), runs.end)
    assert runs.second.stop_reason is StopReason.FINISHED


@pytest.mark.parametrize("mode", ["train", "val"])
def test_the_rows_of_both_parts_are_those_of_an_unbroken_run(
    runs: SimpleNamespace, mode: str
) -> None:
    parts, whole = (zoo.rows_of(runs.folder / name, mode) for name in ("parts", "whole"))
    assert parts == whole


def test_the_results_after_the_stop_are_those_of_an_unbroken_run(runs: SimpleNamespace) -> None:
    assert set(runs.first_results) == {"val_step_2", "test"}
    names = {"val_step_2", "val_step_4", "val_epoch_1", "val_step_6", "val_epoch_2", "test"}
    assert set(runs.second_results) == names
    for key, metrics in runs.second_results.items():
        assert metrics == runs.results[key]


def test_nothing_is_compiled_twice_after_a_restore(runs: SimpleNamespace) -> None:
    assert (runs.compiled["train_step"], runs.compiled["eval_step"]) == (1, 1)


def test_every_restored_buffer_is_donated(runs: SimpleNamespace) -> None:
    kept = [
        path
        for path, leaf in jax.tree_util.tree_leaves_with_path(runs.restored)
        if not leaf.is_deleted()
    ]
    assert kept == []


@pytest.mark.parametrize("step", [2, "best", -1])
def test_any_step_can_be_gone_on_from(
    stage: probes.Repeatable, runs: SimpleNamespace, step: Any
) -> None:
    again = begin(stage, runs.folder / "whole")
    found = again.load_model(step)
    losses = {s: row["loss"] for s, row in zoo.rows_of(runs.folder / "whole", "val").items()}
    best = min(losses, key=losses.get)  # type: ignore[arg-type]
    assert found == {"best": best, -1: STEPS}.get(step, step)
    assert again.global_step == int(again.state.step) == found
    again.init_logger(None)
    assert again.eval_model(zoo.loader(24))["loss"] == losses[found]


def test_an_older_step_is_gone_on_from_in_another_folder(
    stage: probes.Repeatable, runs: SimpleNamespace, tmp_path: Path
) -> None:
    other = begin(stage, tmp_path / "other")
    assert other.load_pretrained_model(runs.folder / "whole", step_idx=2) == 2
    train(other)
    probes.assert_same_course(probes.learned(other), runs.end)
    rows = zoo.rows_of(runs.folder / "whole", "train")
    assert zoo.rows_of(tmp_path / "other", "train") == {s: rows[s] for s in range(3, STEPS + 1)}


def test_a_new_trainer_goes_on_by_itself(
    stage: probes.Repeatable, runs: SimpleNamespace, tmp_path: Path
) -> None:
    train(begin(stage, tmp_path), stop=4)
    again = begin(stage, tmp_path)
    train(again)
    probes.assert_same_course(probes.learned(again), runs.end)
    for mode in ("train", "val"):
        assert zoo.rows_of(tmp_path, mode) == zoo.rows_of(runs.folder / "whole", mode)


def test_a_run_that_is_done_does_nothing_when_it_is_begun_again(
    stage: probes.Repeatable, runs: SimpleNamespace
) -> None:
    again = begin(stage, runs.folder / "whole")
    again.load_model()
    sets = ("train", "val", "train_epoch", "test")
    rows = [zoo.rows_of(runs.folder / "whole", name) for name in sets]
    results = train(again)
    assert again.stop_reason is StopReason.NOTHING_TO_DO
    assert [zoo.rows_of(runs.folder / "whole", name) for name in sets] == rows
    # Of the validations before the checkpoint only the newest is known.
    kept = ("val_step_6", "val_epoch_2", "test")
    assert results == {name: runs.results[name] for name in kept}


def test_a_run_that_is_done_logs_its_last_row_of_fewer_steps_as_before(
    stage: probes.Repeatable, tmp_path: Path
) -> None:
    train(stage.begin(*SAVING, folder=tmp_path, every=4))
    rows = zoo.rows_of(tmp_path, "train")
    assert list(rows) == [4, STEPS]
    train(stage.begin(*SAVING, folder=tmp_path, every=4))
    assert zoo.rows_of(tmp_path, "train") == rows


def test_rows_of_a_start_that_did_not_come_to_a_save_are_logged_once(
    stage: probes.Repeatable, runs: SimpleNamespace, tmp_path: Path
) -> None:
    train(stage.begin(folder=tmp_path), stop=1)
    train(begin(stage, tmp_path))
    assert zoo.rows_of(tmp_path, "train") == zoo.rows_of(runs.folder / "whole", "train")
    superseded = (tmp_path / "metrics.superseded.jsonl").read_text(encoding="utf-8")
    assert '"step": 1,' in superseded


def test_a_loader_without_a_state_goes_on_by_count(
    plain: probes.Repeatable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    batches = list(zoo.loader(64, shuffle=True, seed=7))
    whole = plain.begin()
    whole.train_model(batches, num_train_steps=6)
    end = probes.learned(whole)
    saving = xt.ModelCheckpointConfig()
    plain.begin(saving, folder=tmp_path).train_model(batches, num_train_steps=3)
    second = plain.begin(saving, folder=tmp_path)
    second.load_model()
    with caplog.at_level("WARNING", logger="xtrainer"):
        second.train_model(batches, num_train_steps=6)
    probes.assert_same_course(probes.learned(second), end)
    assert "dropping 3 batches" in caplog.text


def test_a_restore_on_another_mesh_goes_on_to_the_same_parameters(
    plain: probes.Repeatable, tmp_path: Path
) -> None:
    saving = xt.ModelCheckpointConfig()
    whole = plain.begin(saving, folder=tmp_path / "whole")
    whole.train_model(zoo.loader(64, shuffle=True), num_train_steps=6)
    end = zoo.host(whole.state.params)
    first = plain.begin(saving, folder=tmp_path / "parts")
    first.train_model(zoo.loader(64, shuffle=True), num_train_steps=3)
    second = zoo.make_trainer(logger=zoo.file_logger(tmp_path / "parts"), callbacks=[saving])
    second.load_model()
    second.train_model(zoo.loader(64, shuffle=True), num_train_steps=6)
    assert second.mesh.size == 8
    zoo.assert_close(second.state.params, end)


@pytest.mark.parametrize("trainer_class", [zoo.Classifier, zoo.ScalarClassifier])
def test_a_run_can_be_gone_on_with_before_a_ragged_last_batch(
    tmp_path: Path, trainer_class: type
) -> None:
    def begin(folder: str) -> Any:
        logger = zoo.file_logger(tmp_path / folder)
        steps = {"gradient_accumulate_steps": 2, "callbacks": [xt.ModelCheckpointConfig()]}
        return zoo.make_trainer(trainer_class, logger=logger, **steps)

    whole = begin("whole")
    whole.train_model(zoo.loader(43, shuffle=True), num_train_steps=5)  # 16, 16, 11, 16, 16
    begin("parts").train_model(zoo.loader(43, shuffle=True), num_train_steps=2)
    second = begin("parts")
    with zoo.compilations() as compiled:
        second.load_model()  # meanwhile the step is compiled
        second.train_model(zoo.loader(43, shuffle=True), num_train_steps=5)
    probes.assert_same_course(probes.learned(second), probes.learned(whole))
    assert compiled["train_step"] == (1 if trainer_class is zoo.Classifier else 2)


def test_train_model_called_twice_goes_on(plain: probes.Repeatable) -> None:
    trainer, data = plain.begin(), zoo.loader(64, shuffle=True)
    trainer.train_model(data, num_train_steps=3)
    trainer.train_model(data, num_train_steps=6)
    twice = probes.learned(trainer)
    trainer = plain.begin()
    trainer.train_model(zoo.loader(64, shuffle=True), num_train_steps=6)
    probes.assert_same_course(probes.learned(trainer), twice)
