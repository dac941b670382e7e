"""Several steps in one compiled call: the same run as one by one, in fewer calls."""

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

VAL = probes.numbered(3, first=100)


def make(steps: int, **config: Any) -> probes.Repeatable:
    return probes.Repeatable(probes.traced(steps_per_dispatch=steps, **config))


@pytest.fixture(scope="module")
def alone() -> probes.Repeatable:
    """A trainer that takes its steps one by one."""
    return make(1)


@pytest.fixture(scope="module")
def grouped() -> probes.Repeatable:
    """The same, up to four steps in a call."""
    return make(4)


def train(stage: probes.Repeatable, *callbacks: Any, batches: int = 11, **kwargs: Any) -> Any:
    """Returns a trainer after a run of one epoch, or as ``kwargs`` say."""
    options = {name: kwargs.pop(name) for name in ("every", "check_val_every_n_steps", "folder")
               if name in kwargs}  # fmt: skip
    trainer = stage.begin(*callbacks, **options)
    loader = kwargs.pop("loader", None) or probes.numbered(batches, bad=kwargs.pop("bad", ()))
    trainer.train_model(loader, kwargs.pop("val", None), **(kwargs or {"num_epochs": 1}))
    return trainer


def calls_of(stage: probes.Repeatable, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Returns a list that gets the number of steps of every call of a compiled step."""
    executor, sizes = stage.trainer.compiled_train_step, []
    call, many = type(executor).__call__, type(executor).many

    def one(self: Any, *args: Any) -> Any:
        sizes.append(1)
        return call(self, *args)

    def several(self: Any, state: Any, batches: Any, *args: Any) -> Any:
        sizes.append(len(batches))
        return many(self, state, batches, *args)

    monkeypatch.setattr(type(executor), "__call__", one)
    monkeypatch.setattr(type(executor), "many", several)
    return sizes


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"every": 3},
        {"every": 5, "num_train_steps": 13},
        {"every": 4, "val": VAL, "check_val_every_n_steps": 3, "num_epochs": 2},
        {"every": 100, "num_train_steps": 9, "steps_per_epoch": 5, "val": VAL},
    ],
    ids=str,
)
def test_the_course_is_that_of_single_steps(
    alone: probes.Repeatable, grouped: probes.Repeatable, options: dict[str, Any]
) -> None:
    first, second = train(alone, **options), train(grouped, **options)
    probes.assert_same_course(probes.learned(first), probes.learned(second))
    for mode in ("train", "train_epoch", "val"):
        assert first.logger.rows(mode) == second.logger.rows(mode)


@pytest.mark.parametrize(
    "config",
    [
        {"gradient_accumulate_steps": 2},
        {"mesh": zoo.devices(4), "batch": probes.one(0, rows=8)},
        {"precision": xt.PrecisionConfig(compute_dtype="bfloat16")},
    ],
    ids=lambda config: "-".join(config),
)
def test_the_course_is_that_of_single_steps_also_with(config: dict[str, Any]) -> None:
    rows = 8 if "batch" in config else probes.ROWS
    courses = []
    for steps in (1, 4):
        trainer = make(steps, **config).begin(every=6)
        trainer.train_model(probes.numbered(10, rows), num_epochs=1)
        courses.append((probes.learned(trainer), trainer.logger.rows()))
    probes.assert_same_course(courses[0][0], courses[1][0])
    assert courses[0][1] == courses[1][1]


def test_dispatches_end_where_something_is_due(
    grouped: probes.Repeatable, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = calls_of(grouped, monkeypatch)
    options = {"every": 6, "num_train_steps": 12, "val": VAL, "check_val_every_n_steps": 8}
    train(grouped, batches=12, **options)
    assert sizes == [3, 3, 2, 4]  # the row after 6, the validation after 8, the end after 12


def test_the_sizes_of_a_run_are_compiled_ahead_and_nothing_besides() -> None:
    stage = make(4)
    with zoo.compilations() as compiled:
        train(stage, batches=12, every=6, num_train_steps=12, val=VAL, check_val_every_n_steps=8)
    programs = stage.trainer.compiled_train_step.programs
    assert compiled["train_steps"] == len(programs) == 3
    assert compiled["train_step"] == 0
    assert programs.recompilations == []
    with zoo.compilations() as compiled:
        train(stage, batches=12, every=6, num_train_steps=12)
    assert compiled["train_steps"] == compiled["train_step"] == 0


def test_a_pass_of_unknown_length_ends_with_single_steps(
    alone: probes.Repeatable, grouped: probes.Repeatable, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = probes.numbered(6)
    first = train(alone, every=100, loader=probes.generate(batches))
    sizes = calls_of(grouped, monkeypatch)
    second = train(grouped, every=100, loader=probes.generate(batches))
    assert sizes == [4, 1, 1]
    probes.assert_same_course(probes.learned(first), probes.learned(second))


def test_a_smaller_last_batch_is_a_step_of_its_own(
    alone: probes.Repeatable, grouped: probes.Repeatable, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = [*probes.numbered(3), probes.one(4, rows=2)]  # BatchNorm forbids padding
    first = train(alone, loader=batches, every=100)
    sizes = calls_of(grouped, monkeypatch)
    second = train(grouped, loader=batches, every=100)
    assert sizes == [1, 1, 1, 1]
    probes.assert_same_course(probes.learned(first), probes.learned(second))


@pytest.mark.parametrize("bad", [1, 2, 4, 5, 11])
def test_a_step_that_is_not_finite_ends_the_run_where_single_steps_would(
    alone: probes.Repeatable, grouped: probes.Repeatable, bad: int
) -> None:
    first, second = train(alone, bad=(bad,)), train(grouped, bad=(bad,))
    assert second.stop_reason is StopReason.NONFINITE
    assert second.global_step == bad - 1
    assert second.sources.positions()["train"].batches == bad - 1
    probes.assert_same_course(probes.learned(first), probes.learned(second))
    assert first.logger.rows() == second.logger.rows()


def test_refused_steps_are_counted_and_passed_over() -> None:
    config = {"nonfinite_policy": "skip", "max_consecutive_nonfinite": 3}
    courses = []
    for steps in (1, 4):
        trainer = train(make(steps, **config), bad=(2, 3, 7), every=4)
        courses.append((probes.learned(trainer), trainer.logger.rows()))
    assert courses[1][0][1]["skipped"] == 3
    probes.assert_same_course(courses[0][0], courses[1][0])
    assert courses[0][1] == courses[1][1]


@pytest.mark.parametrize("step", [2, 4, 6])
def test_a_stop_ends_the_run_after_the_step_it_was_asked_for_at(
    grouped: probes.Repeatable, step: int
) -> None:
    recorder = probes.acting("on_training_step", lambda trainer, *_: trainer.request_stop(),
                             every_n_steps=step)  # fmt: skip
    trainer = train(grouped, recorder)
    assert trainer.stop_reason is StopReason.REQUESTED
    assert trainer.global_step == step


def test_step_hooks_are_called_after_just_their_steps(grouped: probes.Repeatable) -> None:
    states: list[int] = []

    def note(trainer: Any, *_: Any) -> None:
        states.append(int(jax.device_get(trainer.state.step)))

    trainer = train(grouped, probes.acting("on_training_step", note, every_n_steps=3), every=100)
    assert trainer.callbacks[0].at("on_training_step") == [(1, 3), (1, 6), (1, 9)]
    assert states == [3, 6, 9]


def test_a_hook_of_every_step_makes_single_steps(
    grouped: probes.Repeatable, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = calls_of(grouped, monkeypatch)
    train(grouped, lambda trainer: probes.Recorder(trainer, hooks=("on_training_step",)))
    assert sizes == [1] * 11


def test_checkpoints_are_of_the_steps_asked_for_and_resume_exactly(
    tmp_path: Path, alone: probes.Repeatable, grouped: probes.Repeatable
) -> None:
    def loader() -> xt.ArrayLoader:
        return xt.ArrayLoader(probes.examples(40), probes.ROWS, shuffle=True, seed=3)

    whole = train(alone, loader=loader(), num_train_steps=17)
    saving = xt.ModelCheckpointConfig(
        log_path=str(tmp_path), every_n_steps=5, max_to_keep=None, save_last=False
    )
    train(grouped, saving, loader=loader(), num_train_steps=8)
    assert list_steps(tmp_path) == [5, 8]  # and the end of what was an epoch
    trainer = grouped.begin()
    assert trainer.load_pretrained_model(tmp_path, step_idx=5) == 5
    trainer.train_model(loader(), num_train_steps=17)
    probes.assert_same_course(probes.learned(whole), probes.learned(trainer))


def test_a_loader_that_fails_ends_the_run_after_its_last_good_batch(
    grouped: probes.Repeatable,
) -> None:
    def failing() -> Any:
        yield from probes.numbered(6)
        raise OSError("planted")

    trainer = grouped.begin(every=100)
    with pytest.raises(OSError, match="planted"):
        trainer.train_model(failing(), num_train_steps=20)
    assert trainer.global_step == int(jax.device_get(trainer.state.step)) == 6
    assert trainer.logger.column("id") == [3.5]


def test_large_batches_are_stacked_on_the_devices() -> None:
    courses = []
    rows = 4096  # too large to go into the step as host arrays
    for steps in (1, 3):
        trainer = make(steps, batch=probes.one(0, rows)).begin(every=100)
        trainer.train_model(probes.numbered(6, rows), num_epochs=1)
        courses.append(probes.learned(trainer))
    probes.assert_same_course(*courses)


def test_debug_takes_single_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = make(4, debug=True)
    sizes = calls_of(stage, monkeypatch)
    train(stage, batches=2)
    assert sizes == [1, 1]


def test_at_least_one_step_is_dispatched() -> None:
    with pytest.raises(xt.ConfigError, match="steps_per_dispatch: found 0, expected a number >= 1"):
        make(0)


def test_rows_of_batches_are_not_mixed_up(grouped: probes.Repeatable) -> None:
    trainer = train(grouped, every=2)
    means = [np.mean(pair) for pair in ((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11,))]
    assert trainer.logger.column("id") == means
