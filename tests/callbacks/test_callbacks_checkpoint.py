"""Which steps are saved, which are kept, and which of them is the best."""

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import probes
import pytest
import zoo

import xtrainer as xt
from xtrainer.checkpoint import find_step, list_steps, read_meta, read_metric
from xtrainer.errors import CheckpointError, ConfigError, MetricError

VAL = probes.numbered(2, first=100)
Make = Callable[..., xt.ModelCheckpointConfig]


@pytest.fixture
def saving(tmp_path: Path) -> Make:
    """Returns what makes the config of a callback that saves to ``tmp_path``."""
    return lambda **config: xt.ModelCheckpointConfig(log_path=str(tmp_path), **config)


def scored(*scores: float) -> Any:
    """Returns what makes a callback that gives the n-th validation the n-th score."""
    left = list(scores)
    add = lambda trainer, metrics, *_: metrics.update(score=left.pop(0))  # noqa: E731
    return probes.acting("on_validation_epoch_end", add)


def epochs(trainer: Any, count: int, batches: int = 2) -> dict[str, Any]:
    return trainer.train_model(probes.numbered(batches), VAL, num_epochs=count)


# When.


def test_each_validation_is_saved(stage: probes.Repeatable, tmp_path: Path, saving: Make) -> None:
    trainer = stage.begin(saving(max_to_keep=None), check_val_every_n_steps=3)
    epochs(trainer, 2, batches=4)
    assert list_steps(tmp_path) == [3, 4, 6, 8]


def test_only_due_epochs_are_saved(stage: probes.Repeatable, tmp_path: Path, saving: Make) -> None:
    epochs(stage.begin(saving(max_to_keep=None, every_n_epochs=2, save_last=False)), 5)
    assert list_steps(tmp_path) == [4, 8]


@pytest.mark.parametrize("val", [None, VAL])
def test_steps_are_saved_whether_there_is_a_validation_or_not(
    stage: probes.Repeatable, tmp_path: Path, saving: Make, val: Any
) -> None:
    config = saving(max_to_keep=None, every_n_steps=3, every_n_epochs=9, save_last=False)
    stage.begin(config).train_model(probes.numbered(7), val, num_epochs=1)
    assert list_steps(tmp_path) == [3, 6]


def test_saving_by_steps_leaves_out_no_validation_within_an_epoch(
    stage: probes.Repeatable, tmp_path: Path, saving: Make
) -> None:
    trainer = stage.begin(saving(max_to_keep=None, every_n_steps=4), check_val_every_n_steps=3)
    epochs(trainer, 1, batches=9)
    assert list_steps(tmp_path) == [3, 4, 6, 8, 9]


def test_without_a_validation_set_epochs_are_saved(
    stage: probes.Repeatable, tmp_path: Path, saving: Make
) -> None:
    trainer = stage.begin(saving(max_to_keep=None))
    trainer.train_model(probes.numbered(2), num_epochs=3)
    assert list_steps(tmp_path) == [2, 4, 6]


def test_where_no_validation_is_ever_due_epochs_are_saved(
    stage: probes.Repeatable, tmp_path: Path, saving: Make
) -> None:
    trainer = stage.begin(saving(max_to_keep=None), check_val_every_n_epoch=-1)
    epochs(trainer, 3)
    assert list_steps(tmp_path) == [2, 4, 6]


@pytest.mark.parametrize(("save_last", "steps"), [(True, [2, 4, 5]), (False, [2, 4])])
def test_the_last_step_is_saved(
    stage: probes.Repeatable, tmp_path: Path, saving: Make, save_last: bool, steps: list[int]
) -> None:
    config = saving(max_to_keep=None, every_n_steps=2, every_n_epochs=9, save_last=save_last)
    stage.begin(config).train_model(probes.numbered(8), num_train_steps=5)
    assert list_steps(tmp_path) == steps


def test_a_step_that_was_asked_to_be_the_last_is_saved(
    stage: probes.Repeatable, tmp_path: Path, saving: Make
) -> None:
    trainer = stage.begin(probes.stop_at(5), saving())
    trainer.train_model(probes.numbered(8), num_epochs=1)
    assert list_steps(tmp_path) == [5]


def test_a_run_of_nothing_saves_nothing(
    stage: probes.Repeatable, tmp_path: Path, saving: Make
) -> None:
    epochs(stage.begin(saving()), 0)
    assert list_steps(tmp_path) == []


def test_a_restored_run_with_nothing_to_do_saves_nothing(
    stage: probes.Repeatable, tmp_path: Path, saving: Make
) -> None:
    epochs(stage.begin(saving()), 2)
    before = {path: hash for path, hash in zoo.files_in(tmp_path).items() if "RUN" not in str(path)}
    trainer = stage.begin(saving())
    epochs(trainer, 2)
    assert trainer.stop_reason is xt.StopReason.NOTHING_TO_DO
    after = zoo.files_in(tmp_path)
    assert {path: hash for path, hash in after.items() if "RUN" not in str(path)} == before


# What is kept.


def test_without_a_metric_the_newest_is_kept(
    stage: probes.Repeatable, tmp_path: Path, saving: Make
) -> None:
    trainer = stage.begin(saving())
    epochs(trainer, 3)
    assert list_steps(tmp_path) == [4, 6]  # one, and one to fall back to
    assert trainer.callbacks[0].best_step() is None
    trainer.callbacks[0].finalize("completed")


@pytest.mark.parametrize(
    ("mode", "scores", "max_to_keep", "kept", "best"),
    [
        ("min", (0.5, 0.1, 0.7, 0.9), 1, [4, 6, 8], 4),
        ("max", (0.5, 0.9, 0.7, 0.1), 1, [4, 6, 8], 4),
        ("min", (0.9, 0.7, 0.5, 0.1), 1, [6, 8], 8),
        ("min", (0.3, 0.1, 0.2, 0.9), 2, [4, 6, 8], 4),
        ("max", (0.3, 0.1, 0.2, 0.9), None, [2, 4, 6, 8], 8),
        ("min", (0.5, 0.5, 0.5, 0.5), 1, [2, 6, 8], 2),
        ("min", (0.5, math.nan, -math.inf, 0.9), 1, [2, 6, 8], 2),
        ("max", (0.5, math.nan, math.inf, 0.1), 1, [2, 6, 8], 2),
        ("min", (math.nan, math.nan, 0.4, 0.5), 1, [6, 8], 6),
        ("min", (math.nan, math.inf, math.nan, math.nan), 1, [6, 8], None),
    ],
)
def test_the_best_and_the_newest_are_kept(
    stage: probes.Repeatable,
    tmp_path: Path,
    saving: Make,
    mode: Any,
    scores: tuple[float, ...],
    max_to_keep: int | None,
    kept: list[int],
    best: int | None,
) -> None:
    config = saving(monitor="score", mode=mode, max_to_keep=max_to_keep)
    trainer = stage.begin(scored(*scores), config)
    epochs(trainer, 4)
    assert list_steps(tmp_path) == kept
    callback = trainer.callbacks[1]
    assert callback.best_step() == best
    callback.finalize("completed")
    known = trainer.progress.best.get("score")
    if best is None:
        assert known is None
    else:
        assert known.pop("metrics")["score"] == scores[best // 2 - 1]
        assert known == {
            "value": scores[best // 2 - 1],
            "step": best,
            "epoch": best // 2,
        }
        assert trainer.progress.best_checkpoints == {"score": str(tmp_path / str(best))}


def test_a_further_call_remembers_the_best(
    stage: probes.Repeatable, tmp_path: Path, saving: Make
) -> None:
    trainer = stage.begin(scored(0.5, 0.1, 0.7, 0.3), saving(monitor="score"))
    epochs(trainer, 3)
    epochs(trainer, 4)
    assert list_steps(tmp_path) == [4, 6, 8]


def test_the_metric_may_be_named_with_its_set(
    stage: probes.Repeatable, tmp_path: Path, saving: Make
) -> None:
    results = epochs(stage.begin(saving(monitor="val/loss")), 2)
    losses = {2: results["val_epoch_1"]["loss"], 4: results["val_epoch_2"]["loss"]}
    for step in list_steps(tmp_path):
        assert read_metric(tmp_path / str(step)) == losses[step]


@pytest.mark.parametrize(("monitor", "val"), [("train/loss", VAL), ("loss", None)])
def test_the_loss_of_training_epochs_can_be_monitored(
    stage: probes.Repeatable, tmp_path: Path, saving: Make, monitor: str, val: Any
) -> None:
    trainer = stage.begin(saving(monitor=monitor, max_to_keep=None))
    trainer.train_model(probes.numbered(2), val, num_epochs=3)
    saved = [read_metric(tmp_path / str(step)) for step in list_steps(tmp_path)]
    assert saved == trainer.logger.column("loss", "train_epoch")
    assert list_steps(tmp_path) == [2, 4, 6]


def test_a_metric_that_is_not_there_is_an_error_after_saving(
    stage: probes.Repeatable, tmp_path: Path, saving: Make
) -> None:
    trainer = stage.begin(saving(monitor="los"))
    with pytest.raises(MetricError, match=r"monitors 'los'.*step 2.*Did you mean 'loss'\?"):
        epochs(trainer, 3)
    assert list_steps(tmp_path) == [2]
    assert read_metric(tmp_path / "2") is None


def test_a_step_saved_before_its_validation_gets_the_metric(
    stage: probes.Repeatable, tmp_path: Path, saving: Make
) -> None:
    # The last step of an epoch is saved by steps, and validated as the end of the epoch.
    config = saving(monitor="score", every_n_steps=2, max_to_keep=1)
    trainer = stage.begin(scored(0.5, 0.1, 0.7, 0.9), config)
    epochs(trainer, 4)
    assert list_steps(tmp_path) == [4, 6, 8]
    assert [read_metric(tmp_path / str(step)) for step in (4, 8)] == [0.1, 0.9]
    assert find_step(tmp_path, "best").name == "4"


def test_a_misspelt_metric_is_found_though_steps_are_saved(
    stage: probes.Repeatable, tmp_path: Path, saving: Make
) -> None:
    with pytest.raises(MetricError, match="Did you mean 'loss'"):
        epochs(stage.begin(saving(monitor="los", every_n_steps=2)), 2)


def test_an_epoch_that_only_ends_in_a_call_has_no_metric_to_monitor(
    stage: probes.Repeatable, tmp_path: Path, saving: Make
) -> None:
    class Countless:
        def __iter__(self) -> Any:
            return iter(probes.numbered(3))

    loader = Countless()
    config = saving(monitor="train/loss", save_last=False)
    trainer = stage.begin(probes.stop_at(3), config)
    for _ in range(2):
        trainer.train_model(loader, num_epochs=2)
    assert list_steps(tmp_path)[-1] == 6


def test_two_callbacks_keep_what_each_of_them_wants(
    stage: probes.Repeatable, tmp_path: Path
) -> None:
    best = xt.ModelCheckpointConfig(
        monitor="score", log_path=str(tmp_path / "best"), save_last=False
    )
    last = xt.ModelCheckpointConfig(log_path=str(tmp_path / "last"), every_n_steps=3)
    trainer = stage.begin(scored(0.1, 0.5, 0.7), best, last)
    epochs(trainer, 3)
    assert list_steps(tmp_path / "best") == [2, 4, 6]
    assert list_steps(tmp_path / "last") == [4, 6]


# What a checkpoint is.


@pytest.mark.parametrize("enable_async_checkpointing", [True, False])
def test_a_checkpoint_is_the_state_at_its_step_while_training_goes_on(
    stage: probes.Repeatable, saving: Make, enable_async_checkpointing: bool
) -> None:
    config = saving(
        every_n_steps=3,
        max_to_keep=None,
        enable_async_checkpointing=enable_async_checkpointing,
    )
    stage.begin(config).train_model(probes.numbered(5), num_epochs=2)
    twin = stage.begin()
    twin.train_model(probes.numbered(5), num_train_steps=3)
    expected = probes.learned(twin)
    trainer = stage.begin(config)
    assert trainer.load_model(3) == 3
    probes.assert_same_course(probes.learned(trainer), expected)


def test_a_checkpoint_holds_the_metrics_of_its_validation(
    stage: probes.Repeatable, tmp_path: Path, saving: Make
) -> None:
    results = epochs(stage.begin(saving()), 1)
    assert read_meta(tmp_path / "2")["metrics"] == results["val_epoch_1"]


def test_a_checkpoint_without_the_optimizer_gives_the_model_only(
    stage: probes.Repeatable, tmp_path: Path, saving: Make, caplog: pytest.LogCaptureFixture
) -> None:
    config = saving(save_optimizer_state=False)
    trainer = stage.begin(config)
    epochs(trainer, 1)
    state = zoo.host((trainer.state.params, trainer.state.mutable_variables))
    assert not any(path.startswith("opt_state") for path in read_meta(tmp_path / "2")["leaves"])
    fresh = stage.begin(config)
    with caplog.at_level(logging.WARNING):
        assert fresh.load_model() == 2
    assert "holds no optimizer state" in caplog.text
    zoo.assert_same((fresh.state.params, fresh.state.mutable_variables), state)
    assert (fresh.global_step, int(fresh.state.step)) == (0, 0)


@pytest.mark.parametrize(("save", "names"), [(True, {"train"}), (False, set())])
def test_positions_of_loaders_are_saved_on_request(
    stage: probes.Repeatable, tmp_path: Path, saving: Make, save: bool, names: set[str]
) -> None:
    epochs(stage.begin(saving(save_dataloader_state=save)), 1)
    assert read_meta(tmp_path / "2")["loaders"].keys() == names


def test_checkpoints_are_in_the_run_folder(stage: probes.Repeatable, tmp_path: Path) -> None:
    make = lambda trainer: xt.ModelCheckpointConfig().create(trainer)  # noqa: E731
    epochs(stage.begin(make, folder=tmp_path), 1)
    assert list_steps(tmp_path / "checkpoints") == [2]


def test_the_test_uses_the_best_and_the_state_stays_the_last(
    stage: probes.Repeatable, saving: Make
) -> None:
    trainer = stage.begin(scored(0.1, 0.5, 0.7), saving(monitor="score"))
    results = trainer.train_model(probes.numbered(2), VAL, VAL, num_epochs=3)
    assert results["test"]["loss"] == results["val_epoch_1"]["loss"]
    assert trainer.eval_model(VAL)["loss"] == results["val_epoch_3"]["loss"]
    assert trainer.global_step == int(trainer.state.step) == 6


# What is refused.


def test_without_a_folder_there_is_an_error_that_says_what_to_do(
    stage: probes.Repeatable,
) -> None:
    with pytest.raises(ConfigError, match="ModelCheckpoint: found no folder.*log_path"):
        stage.begin(xt.ModelCheckpointConfig())


def test_keeping_none_is_an_error() -> None:
    config = xt.ModelCheckpointConfig(max_to_keep=0)
    with pytest.raises(ConfigError, match="max_to_keep: found 0, expected >= 1, or None"):
        xt.check_configs(trainer=xt.TrainerConfig(callbacks=[config]))


def test_a_folder_that_is_a_file_is_an_error(stage: probes.Repeatable, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    trainer = stage.begin(xt.ModelCheckpointConfig(log_path=str(tmp_path / "file")))
    with pytest.raises(CheckpointError, match="expected a folder that can be written"):
        epochs(trainer, 1)
