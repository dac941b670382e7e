"""An error anywhere: everything is closed, the save under way is finished, the first one raised."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import probes
import pytest
import zoo

import xtrainer as xt
from xtrainer.checkpoint import list_steps
from xtrainer.errors import BatchError, XTrainerError
from xtrainer.loop import StopReason
from xtrainer.types import HostMetrics

VAL = probes.numbered(2, first=100)
DURING = [hook for hook in probes.HOOKS if hook not in ("on_exception", "finalize")]
CLOSING = ("on_exception", "finalize")


class Planted(Exception):
    """What the tests throw."""


def failing(hook: str, call: int = 1) -> Callable[[Any], xt.Callback]:
    """Returns what makes a callback that fails when a hook is called for the ``call``-th time."""
    calls = itertools.count(1)

    def act(trainer: Any, *args: Any) -> None:
        if next(calls) >= call:
            raise Planted(hook)

    return probes.acting(hook, act)


def closing(trainer: Any) -> probes.Recorder:
    return probes.Recorder(trainer, hooks=CLOSING)


def train(trainer: Any, loader: Any = None) -> None:
    loader = probes.numbered(4) if loader is None else loader
    trainer.train_model(loader, VAL, VAL, num_epochs=2)


def assert_closed(trainer: Any, error: type[BaseException] = Planted) -> None:
    for callback in trainer.callbacks:
        if isinstance(callback, probes.Recorder) and callback.hooks == CLOSING:
            assert callback.names() == ["on_exception", "finalize"]
            assert isinstance(callback.calls[0][1][0], error)
            assert callback.at("finalize") == [("failed",)]
    assert trainer.stop_reason is StopReason.FAILED
    assert error.__name__ in trainer.stop_detail
    assert probes.prefetch_threads() == []


@pytest.mark.parametrize("hook", DURING)
def test_an_error_in_a_hook_closes_everything_and_is_raised(
    stage: probes.Repeatable, hook: str
) -> None:
    trainer = stage.begin(closing, failing(hook), closing)
    with pytest.raises(Planted) as caught:
        train(trainer)
    assert str(caught.value) == hook
    assert_closed(trainer)
    assert trainer.logger.statuses == ["failed"]


@pytest.mark.parametrize("hook", [hook for hook in DURING if hook != "on_training_start"])
def test_the_save_under_way_is_finished_and_usable(
    stage: probes.Repeatable, tmp_path: Path, hook: str
) -> None:
    saving = xt.ModelCheckpointConfig(log_path=str(tmp_path), every_n_steps=1, save_last=False)
    call = 1 if hook in ("on_training_end", "on_test_epoch_start", "on_test_epoch_end") else 2
    trainer = stage.begin(saving, failing(hook, call))
    with pytest.raises(Planted):
        train(trainer)
    saved = list_steps(tmp_path)
    assert 1 <= len(saved) <= 2
    trainer = stage.begin(saving)
    assert trainer.load_model() == trainer.global_step == saved[-1] > 0
    twin = stage.begin()
    twin.train_model(probes.numbered(4), num_train_steps=saved[-1])
    zoo.assert_same(trainer.state.params, twin.state.params)


def test_an_error_at_the_end_is_raised_after_everything_is_closed(
    stage: probes.Repeatable,
) -> None:
    before, after = (probes.Recorder(stage.trainer, hooks=("finalize",)) for _ in range(2))
    trainer = stage.begin(lambda trainer: before, failing("finalize"), lambda trainer: after)
    with pytest.raises(Planted, match="finalize"):
        train(trainer)
    assert before.names() == after.names() == ["finalize"]
    assert trainer.logger.statuses == ["completed"]


def test_errors_while_closing_become_notes_of_the_first(stage: probes.Repeatable) -> None:
    trainer = stage.begin(
        failing("on_exception"), failing("finalize"), failing("on_training_step", 2), closing
    )
    with pytest.raises(Planted, match="on_training_step") as caught:
        train(trainer)
    notes = " ".join(caught.value.__notes__)
    assert "Planted: on_exception" in notes and "Planted: finalize" in notes
    assert_closed(trainer)


def test_of_several_errors_at_the_end_the_first_is_raised(stage: probes.Repeatable) -> None:
    trainer = stage.begin(failing("finalize"), failing("finalize"))
    with pytest.raises(Planted) as caught:
        train(trainer)
    assert caught.value.__notes__ == ["Then: Planted: finalize"]


@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_an_error_of_the_loader_is_raised_with_its_place(
    stage: probes.Repeatable, tmp_path: Path, batch: int
) -> None:
    def broken() -> Iterator[probes.Batch]:
        yield from probes.numbered(batch - 1)
        raise Planted("loader")

    saving = xt.ModelCheckpointConfig(log_path=str(tmp_path), every_n_steps=1)
    trainer = stage.begin(closing, saving)
    with pytest.raises(Planted, match="loader") as caught:
        train(trainer, broken())
    assert f"while reading batch {batch} of the 'train' loader" in caught.value.__notes__
    assert_closed(trainer)
    assert trainer.global_step == batch - 1
    assert list_steps(tmp_path) == list(range(1, batch))[-2:]


def test_an_error_of_the_validation_loader_is_raised(stage: probes.Repeatable) -> None:
    def broken() -> Iterator[probes.Batch]:
        yield from VAL
        raise Planted("loader")

    trainer = stage.begin(closing)
    with pytest.raises(Planted) as caught:
        trainer.train_model(probes.numbered(2), broken(), num_epochs=1)
    assert "while reading batch 3 of the 'val' loader" in caught.value.__notes__
    assert_closed(trainer)


@pytest.mark.parametrize("mode", ["train", "train_epoch", "val", "test"])
def test_an_error_of_a_logger_is_raised(
    stage: probes.Repeatable, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    trainer = stage.begin(closing)
    log = trainer.logger.log_metrics

    def fail(metrics: HostMetrics, step: int, kind: str, epoch: int) -> None:
        if kind == mode:
            raise Planted("logger")
        log(metrics, step, kind, epoch)

    monkeypatch.setattr(trainer.logger, "log_metrics", fail)
    with pytest.raises(Planted, match="logger"):
        train(trainer)
    assert_closed(trainer)
    assert trainer.logger.statuses == ["failed"]


def test_every_tool_of_a_run_folder_is_closed(stage: probes.Repeatable, tmp_path: Path) -> None:
    trainer = stage.begin(failing("on_training_step", 3), folder=tmp_path)
    with pytest.raises(Planted):
        train(trainer)
    tool = trainer.logger.tools[-1].tool.tool
    files = [tool._rows, *tool._tables.values()]
    assert files == [None]


def test_the_rows_of_all_steps_before_an_error_are_logged(
    stage: probes.Repeatable, tmp_path: Path
) -> None:
    trainer = stage.begin(failing("on_training_step", 7), folder=tmp_path, every=3)
    with pytest.raises(Planted):
        trainer.train_model(probes.numbered(9), num_epochs=1)
    rows = zoo.rows_of(tmp_path, "train")
    assert {step: row["id"] for step, row in rows.items()} == {3: 2.0, 6: 5.0, 7: 7.0}


def test_an_interrupt_closes_everything_too(stage: probes.Repeatable) -> None:
    def interrupt(trainer: Any, *args: Any) -> None:
        raise KeyboardInterrupt

    trainer = stage.begin(closing, probes.acting("on_training_step", interrupt))
    with pytest.raises(KeyboardInterrupt):
        train(trainer)
    assert_closed(trainer, KeyboardInterrupt)


def test_a_batch_of_another_shape_is_an_error_that_closes_everything(
    stage: probes.Repeatable,
) -> None:
    trainer = stage.begin(closing)
    wrong = {**probes.one(3), "inputs": np.zeros((4, 7), np.float32)}
    with pytest.raises(BatchError, match="differs from the example batch") as caught:
        train(trainer, [*probes.numbered(2), wrong])
    assert any("batch 3 of the 'train' loader" in note for note in caught.value.__notes__)
    assert_closed(trainer, BatchError)


def test_a_first_batch_that_does_not_fit_is_an_error_before_compilation() -> None:
    trainer = probes.traced()
    wrong = {**probes.one(1), "inputs": np.zeros((4, 7), np.float32)}
    with zoo.compilations() as compiled, pytest.raises(BatchError) as caught:
        trainer.train_model([wrong], num_epochs=1)
    assert "This is the first batch of the training loader." in caught.value.__notes__
    assert compiled["train_step"] == 0


def test_both_or_neither_of_epochs_and_steps_is_an_error(stage: probes.Repeatable) -> None:
    trainer = stage.begin(closing)
    with pytest.raises(XTrainerError, match="found neither"):
        trainer.train_model(probes.numbered(2))
    with pytest.raises(XTrainerError, match="found both"):
        trainer.train_model(probes.numbered(2), num_epochs=1, num_train_steps=3)
    assert trainer.callbacks[0].calls == []


@pytest.mark.parametrize(
    "hook", ["on_training_start", "on_training_step", "on_training_log", "on_training_epoch_end"]
)
def test_after_an_error_the_run_can_go_on(stage: probes.Repeatable, hook: str) -> None:
    batches = probes.numbered(4)
    whole = stage.begin()
    whole.train_model(batches, num_epochs=2)
    expected = probes.learned(whole)
    trainer = stage.begin(failing(hook))
    with pytest.raises(Planted):
        trainer.train_model(batches, num_epochs=2)
    trainer.callbacks.clear()
    trainer.train_model(batches, num_epochs=2)
    assert trainer.stop_reason is StopReason.FINISHED
    probes.assert_same_course(probes.learned(trainer), expected)


def test_after_an_error_no_batch_of_an_iterator_is_lost(stage: probes.Repeatable) -> None:
    trainer = stage.begin(failing("on_training_step", 3))
    batches = probes.generate(probes.numbered(7))
    with pytest.raises(Planted):
        trainer.train_model(batches, num_epochs=1)
    trainer.callbacks.clear()
    trainer.train_model(batches, num_epochs=1)
    assert trainer.logger.column("id") == [1, 2, 3, 4, 5, 6, 7]


def test_an_error_of_the_step_itself_is_raised_and_everything_closed(
    stage: probes.Repeatable, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = stage.begin(closing)
    executor = trainer.compiled_train_step

    def fail(*args: Any) -> Any:
        if trainer.global_step == 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: planted")
        return executor(*args)

    for name in ("new_window", "programs", "ahead", "flatten"):
        setattr(fail, name, getattr(executor, name))
    monkeypatch.setattr(trainer, "compiled_train_step", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="planted"):
        train(trainer)
    assert_closed(trainer, jax.errors.JaxRuntimeError)
    assert trainer.logger.column("id") == [1, 2]
