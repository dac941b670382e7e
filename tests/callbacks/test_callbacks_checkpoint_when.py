"""When else is saved: by time, at the start, after an error; and what a failed save does."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import probes
import pytest
import zoo

import xtrainer as xt
from xtrainer.callbacks import checkpoint as module
from xtrainer.checkpoint import list_steps
from xtrainer.checkpoint.commit import begin_attempt
from xtrainer.checkpoint.under_way import Save
from xtrainer.errors import CheckpointError, CheckpointWriteError, ConfigError, NewerAttemptError

Make = Callable[..., xt.ModelCheckpointConfig]


@pytest.fixture
def saving(tmp_path: Path) -> Make:
    """Returns what makes the config of a callback that saves to ``tmp_path``."""
    return lambda **config: xt.ModelCheckpointConfig(
        log_path=str(tmp_path), **{"max_to_keep": None, "save_last": False, **config}
    )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Gives the time that the callback sees, in seconds; a test may change it."""
    now = [1000.0]

    class Time:
        monotonic = staticmethod(lambda: now[0])

    monkeypatch.setattr(module, "time", Time)
    return now


def passing(clock: list[float], seconds: float) -> Any:
    """Returns what makes a callback for which each step takes some seconds."""

    def act(trainer: Any, *args: Any) -> None:
        clock[0] += seconds

    return probes.acting("on_training_step", act)


@pytest.mark.parametrize(
    ("every", "minutes", "steps"),
    [(1, 1.0, [3, 6, 9]), (4, 1.0, [4, 8]), (1, 2.0, [6]), (1, 0.1, list(range(1, 11)))],
)
def test_a_save_by_time_comes_with_the_next_row(
    stage: probes.Repeatable,
    tmp_path: Path,
    saving: Make,
    clock: list[float],
    every: int,
    minutes: float,
    steps: list[int],
) -> None:
    config = saving(every_n_minutes=minutes, every_n_epochs=99)
    trainer = stage.begin(passing(clock, 20.0), config, every=every)
    trainer.train_model(probes.numbered(10), num_epochs=1)
    assert list_steps(tmp_path) == steps


def test_any_save_begins_the_time_anew(
    stage: probes.Repeatable, tmp_path: Path, saving: Make, clock: list[float]
) -> None:
    config = saving(every_n_minutes=1.0, every_n_steps=2, every_n_epochs=99)
    trainer = stage.begin(passing(clock, 20.0), config)
    trainer.train_model(probes.numbered(10), num_epochs=1)
    assert list_steps(tmp_path) == [2, 4, 6, 8, 10]


def test_without_time_nothing_waits_for_a_row(stage: probes.Repeatable, saving: Make) -> None:
    trainer = stage.begin(saving(every_n_epochs=99))
    assert trainer.step_hooks() == []
    trainer = stage.begin(saving(every_n_epochs=99, every_n_minutes=5.0))
    (hook,) = trainer.step_hooks()
    assert hook.next_step(0) is None  # not yet


def test_the_start_is_saved_once(stage: probes.Repeatable, tmp_path: Path, saving: Make) -> None:
    config = saving(save_on_start=True, every_n_epochs=99)
    for steps in (2, 4):
        stage.begin(config).train_model(probes.numbered(4), num_train_steps=steps)
    assert list_steps(tmp_path) == [0]
    trainer = stage.begin(config)
    assert trainer.load_model() == 0
    zoo.assert_same(trainer.state.params, stage.begin().state.params)


@pytest.mark.parametrize(("save", "steps"), [(True, [3]), (False, [])])
def test_after_an_error_the_last_good_step_is_saved_on_request(
    stage: probes.Repeatable, tmp_path: Path, saving: Make, save: bool, steps: list[int]
) -> None:
    def broken() -> Iterator[probes.Batch]:
        yield from probes.numbered(3)
        raise RuntimeError("planted")

    config = saving(save_on_exception=save, every_n_epochs=99)
    with pytest.raises(RuntimeError, match="planted"):
        stage.begin(config).train_model(broken(), num_epochs=1)
    assert list_steps(tmp_path) == steps
    if save:
        trainer = stage.begin(config)
        trainer.train_model(probes.numbered(5), num_epochs=1)
        whole = stage.begin()
        expected = whole.train_model(probes.numbered(5), num_epochs=1)
        assert expected == {}
        assert trainer.global_step == 5


def fails(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Lets the disk be full while the checkpoints of some steps are written."""
    commit = Save.commit

    def commit_or_fail(self: Save, *args: Any) -> None:
        with zoo.full_disk(2**11) if self.step in steps else contextlib.nullcontext():
            commit(self, *args)

    monkeypatch.setattr(Save, "commit", commit_or_fail)


@pytest.mark.parametrize("enable_async_checkpointing", [True, False])
def test_a_failed_save_ends_the_run_with_its_reason(
    stage: probes.Repeatable,
    tmp_path: Path,
    saving: Make,
    monkeypatch: pytest.MonkeyPatch,
    enable_async_checkpointing: bool,
) -> None:
    fails(monkeypatch, {4})
    config = saving(every_n_steps=2, enable_async_checkpointing=enable_async_checkpointing)
    trainer = stage.begin(config)
    with pytest.raises(
        CheckpointWriteError, match=r"step 4 failed.* needs 584 bytes. Free there: [\d,]+"
    ):
        trainer.train_model(probes.numbered(1000), num_epochs=1)
    assert list_steps(tmp_path) == [2]
    assert {path.name for path in tmp_path.iterdir()} == {"2", "RUN.json"}
    # A save in the background is known to have failed some steps later.
    assert trainer.global_step < (500 if enable_async_checkpointing else 5)


def test_some_saves_may_fail(
    stage: probes.Repeatable,
    tmp_path: Path,
    saving: Make,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fails(monkeypatch, {4, 6, 10})
    config = saving(every_n_steps=2, max_failed_saves=2)
    with caplog.at_level(logging.ERROR):
        stage.begin(config).train_model(probes.numbered(12), num_epochs=1)
    assert list_steps(tmp_path) == [2, 8, 12]
    assert caplog.text.count("failed") >= 3


def test_a_run_that_was_replaced_ends_however_many_saves_may_fail(
    stage: probes.Repeatable, tmp_path: Path, saving: Make
) -> None:
    def replace(trainer: Any, metrics: Any, epoch: int, step: int) -> None:
        if step == 4:
            begin_attempt(tmp_path)

    config = saving(every_n_steps=1, max_failed_saves=99, enable_async_checkpointing=False)
    trainer = stage.begin(config, probes.acting("on_training_step", replace))
    with pytest.raises(NewerAttemptError, match="attempt 2 writes here"):
        trainer.train_model(probes.numbered(1000), num_epochs=1)
    assert (list_steps(tmp_path), trainer.global_step) == ([1, 2, 3, 4], 5)


def test_more_than_that_may_not(
    stage: probes.Repeatable, tmp_path: Path, saving: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails(monkeypatch, {4, 6})
    config = saving(every_n_steps=2, max_failed_saves=1, enable_async_checkpointing=False)
    with pytest.raises(CheckpointWriteError, match="save of step 6 failed"):
        stage.begin(config).train_model(probes.numbered(12), num_epochs=1)
    assert list_steps(tmp_path) == [2]


def test_the_last_save_that_fails_is_an_error_too(
    stage: probes.Repeatable, tmp_path: Path, saving: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails(monkeypatch, {3})
    with pytest.raises(CheckpointWriteError, match="save of step 3 failed"):
        stage.begin(saving(save_last=True)).train_model(probes.numbered(3), num_epochs=1)


def test_a_state_that_cannot_be_saved_is_told_before_the_first_step(
    saving: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = probes.traced(callbacks=[saving()])
    state = trainer.state
    odd = {**state.params, "empty": state.params["Dense_0"]["kernel"][:0]}
    trainer.state = state.replace(params=odd)
    with zoo.compilations() as compiled, pytest.raises(CheckpointError, match="params/empty"):
        trainer.train_model(probes.numbered(3), num_epochs=1)
    assert compiled["train_step"] == 0


@pytest.mark.parametrize(
    "wrong", [{"every_n_minutes": 0.0}, {"every_n_minutes": -2.0}, {"max_failed_saves": -1}]
)
def test_settings_that_cannot_be_are_told(wrong: dict[str, float]) -> None:
    (name,) = wrong
    config = xt.ModelCheckpointConfig(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=f"{name}: found"):
        xt.check_configs(trainer=xt.TrainerConfig(callbacks=[config]))


def test_replicas_that_differ_are_not_saved(
    stage: probes.Repeatable, tmp_path: Path, saving: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(
        module, "differing_replicas", lambda state: asked.append(state) or ["params/w: a and b"]
    )
    stage.begin(saving()).train_model(probes.numbered(2), num_epochs=1)
    assert (asked, list_steps(tmp_path)) == ([], [2])
    config = saving(every_n_steps=3, compare_replicas=True)
    with pytest.raises(CheckpointError, match="at step 3 replicas of 1 arrays differ"):
        stage.begin(config).train_model(probes.numbered(4), num_epochs=1, resume="never")
    assert list_steps(tmp_path) == []
    assert len(asked) == 1
