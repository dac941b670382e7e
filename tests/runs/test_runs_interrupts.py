"""Does a run that a signal ends save once, and go on as if it had not been ended?"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import probes
import pytest
import zoo

import xtrainer as xt
from xtrainer.checkpoint import list_steps
from xtrainer.launch import exits
from xtrainer.launch.interrupts import forget_signals
from xtrainer.loop import StopReason

STEPS = 11
SAVING = xt.ModelCheckpointConfig(every_n_steps=4, every_n_epochs=99, max_to_keep=None)
TERM, INT = signal.SIGTERM, signal.SIGINT
LATE_STEPS = 2
"""Steps that may have been taken when the signal is heard of."""


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """The process of the tests outlives the signals that it sends itself."""
    yield
    forget_signals()
    exits.note_end_of_run(0)


@pytest.fixture(scope="module")
def stage() -> probes.Repeatable:
    """Gives a trainer with BatchNorm and dropout, compiled once."""
    return probes.Repeatable(probes.traced())


def send_at(step: int, hook: str = "on_training_step", number: int = TERM, times: int = 1) -> Any:
    """Returns what makes a callback that sends a signal in a hook, and waits until it is heard."""
    left = [times]

    def act(trainer: Any, *args: Any) -> None:
        if trainer.global_step >= step and left[0]:
            left[0] -= 1
            os.kill(os.getpid(), number)
            end = time.monotonic() + 10
            while trainer.interrupts.asked is None:
                assert time.monotonic() < end
                time.sleep(0.001)

    return probes.acting(hook, act)


def train(
    stage: probes.Repeatable,
    folder: Path,
    *callbacks: Any,
    saving: xt.ModelCheckpointConfig = SAVING,
    data: Any = None,
    **options: Any,
) -> Any:
    """Runs eleven steps in passes of five batches, the last of them smaller."""
    trainer = stage.begin(*callbacks, saving, folder=folder, every=3, check_val_every_n_steps=2)
    if data is None:
        data = [*probes.numbered(4), probes.one(5, rows=2)]
    test = probes.numbered(3, first=200)
    options = {"num_train_steps": STEPS, **options}
    trainer.results = trainer.train_model(data, probes.numbered(2, first=100), test, **options)
    return trainer


def all_rows(folder: Path) -> list[Any]:
    """Returns every row in its order, without what measures time."""
    rows = xt.read_metrics(folder)
    for row in rows:
        row["metrics"] = {k: v for k, v in row["metrics"].items() if not k.endswith("time_s")}
        del row["time"]
    return rows


@pytest.fixture(scope="module")
def whole(stage: probes.Repeatable, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What an undisturbed run has learned, logged and returned."""
    folder = tmp_path_factory.mktemp("whole")
    trainer = train(stage, folder)
    return probes.learned(trainer), all_rows(folder), trainer.results["test"]


def assert_goes_on(stage: probes.Repeatable, folder: Path, whole: Any, lost: int = 0) -> None:
    """Fails unless the next start goes on at the last step, and ends like the whole run."""
    starts: list[int] = []
    note = probes.acting("on_training_start", lambda t: starts.append(t.global_step))
    before = max(list_steps(folder / "checkpoints"), default=0)
    trainer = train(stage, folder, note)
    assert starts == [before]
    probes.assert_same_course(probes.learned(trainer), whole[0])
    assert all_rows(folder) == whole[1]
    assert trainer.results["test"] == whole[2]
    assert trainer.stop_reason is not None and trainer.stop_reason.completed
    assert exits.watch_exit().of_run == 0


@pytest.mark.parametrize(("number", "reason"), [(TERM, "PREEMPTED"), (INT, "INTERRUPTED")])
@pytest.mark.parametrize(
    ("hook", "step"),
    [
        ("on_training_step", 1),
        ("on_training_step", 7),
        ("on_training_step", 8),  # a save, a validation
        ("on_training_step", 10),
        ("on_training_step", 11),
        ("on_training_epoch_start", 5),
        ("on_training_log", 3),
        ("on_validation_epoch_start", 6),
        ("on_validation_epoch_end", 6),
        ("on_epoch_logged", 6),
        ("on_training_epoch_end", 5),
        ("on_training_epoch_end", 10),
        ("on_training_epoch_end", 11),
    ],
)
def test_a_signal_ends_the_run_and_the_next_start_loses_nothing(
    stage: probes.Repeatable,
    tmp_path: Path,
    whole: Any,
    hook: str,
    step: int,
    number: int,
    reason: str,
) -> None:
    trainer = train(stage, tmp_path, send_at(step, hook, number))
    assert trainer.stop_reason is StopReason[reason]
    assert trainer.stop_detail == f"{signal.Signals(number).name} came."
    assert step <= trainer.global_step <= step + LATE_STEPS
    assert max(list_steps(tmp_path / "checkpoints")) == trainer.global_step
    assert "test" not in trainer.results
    assert exits.watch_exit().of_run == trainer.stop_reason.exit_code
    forget_signals()
    assert_goes_on(stage, tmp_path, whole)


def test_a_run_that_is_ended_again_and_again_gets_to_its_end(
    stage: probes.Repeatable, tmp_path: Path, whole: Any
) -> None:
    steps = [0]
    hooks = ["on_validation_epoch_start", "on_training_step", "on_training_epoch_start"]
    for attempt in range(20):
        trainer = train(stage, tmp_path, send_at(steps[-1] + 1, hooks[attempt % 3], INT))
        if trainer.stop_reason is not StopReason.INTERRUPTED:
            break
        steps.append(trainer.global_step)
    assert len(steps) > 5 and steps == sorted(steps)
    probes.assert_same_course(probes.learned(trainer), whole[0])
    assert all_rows(tmp_path) == whole[1]


def test_it_is_saved_though_nothing_else_is(stage: probes.Repeatable, tmp_path: Path) -> None:
    saving = xt.ModelCheckpointConfig(every_n_epochs=99, save_last=False)
    trainer = train(stage, tmp_path, send_at(4), saving=saving)
    assert list_steps(tmp_path / "checkpoints") == [trainer.global_step]


def test_before_the_first_step_it_ends_with_none(stage: probes.Repeatable, tmp_path: Path) -> None:
    trainer = train(stage, tmp_path, send_at(0, "on_training_start"))
    assert (trainer.stop_reason, trainer.global_step) == (StopReason.PREEMPTED, 0)
    assert list_steps(tmp_path / "checkpoints") == []


def test_a_process_that_is_to_end_begins_no_other_run(
    stage: probes.Repeatable, tmp_path: Path
) -> None:
    train(stage, tmp_path / "first", send_at(3))
    trainer = train(stage, tmp_path / "second")
    assert (trainer.stop_reason, trainer.global_step) == (StopReason.PREEMPTED, 0)


def test_after_an_interrupt_another_run_may_be_begun(
    stage: probes.Repeatable, tmp_path: Path
) -> None:
    train(stage, tmp_path / "first", send_at(3, number=INT))
    assert train(stage, tmp_path / "second").stop_reason is StopReason.FINISHED


def test_a_loader_that_stalls_is_not_waited_for(
    stage: probes.Repeatable, tmp_path: Path, whole: Any
) -> None:
    released = threading.Event()

    def stalls() -> Iterator[Any]:
        yield from probes.numbered(2)
        os.kill(os.getpid(), TERM)
        released.wait(60)

    class Loader:
        def __iter__(self) -> Iterator[Any]:
            return stalls()

    begun = time.monotonic()
    try:
        trainer = train(stage, tmp_path, data=Loader())
        assert time.monotonic() - begun < 8
    finally:
        released.set()
    assert trainer.stop_reason is StopReason.PREEMPTED
    assert trainer.global_step in (0, 1, 2)  # the loader is read ahead
    forget_signals()
    assert_goes_on(stage, tmp_path, whole)


def test_a_test_that_is_broken_off_comes_with_the_next_start(
    stage: probes.Repeatable, tmp_path: Path, whole: Any
) -> None:
    trainer = train(stage, tmp_path, send_at(11, "on_test_epoch_start"))
    assert trainer.stop_reason is StopReason.PREEMPTED
    assert "test" not in trainer.results
    forget_signals()
    assert_goes_on(stage, tmp_path, whole)


def test_a_signal_after_the_work_is_passed_on(stage: probes.Repeatable, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(stage, tmp_path, send_at(11, "finalize", INT))
    assert stage.trainer.stop_reason is StopReason.FINISHED


def test_a_long_callback_sees_that_the_run_is_to_end(
    stage: probes.Repeatable, tmp_path: Path
) -> None:
    waited: list[float] = []

    def act(trainer: Any, *args: Any) -> None:
        if trainer.global_step != 3:
            return
        begun = time.monotonic()
        threading.Timer(0.05, os.kill, [os.getpid(), TERM]).start()
        while not trainer.should_stop and time.monotonic() < begun + 10:
            time.sleep(0.01)
        waited.append(time.monotonic() - begun)

    trainer = train(stage, tmp_path, probes.acting("on_training_step", act))
    assert trainer.global_step == 3 and waited[0] < 5


def test_a_program_that_is_being_compiled_is_not_waited_for(tmp_path: Path) -> None:
    trainer = probes.traced(logger=zoo.file_logger(tmp_path), callbacks=[SAVING])
    released, programs = threading.Event(), trainer.compiled_train_step.programs
    compile_program = programs._compile

    def slow(lowered: Any, name: str) -> Any:
        os.kill(os.getpid(), TERM)
        released.wait(60)
        return compile_program(lowered, name)

    programs._compile = slow
    begun = time.monotonic()
    try:
        trainer.train_model(probes.numbered(4), num_epochs=1)
        assert time.monotonic() - begun < 10
    finally:
        released.set()
    assert (trainer.stop_reason, trainer.global_step) == (StopReason.PREEMPTED, 0)
    assert trainer.sources.positions()["train"].batches == 0
    forget_signals()
    trainer.train_model(probes.numbered(4), num_epochs=1)
    assert (trainer.stop_reason, trainer.global_step) == (StopReason.FINISHED, 4)


def test_signals_are_left_alone_where_that_is_asked_for() -> None:
    trainer = probes.traced(handle_signals=False, callbacks=[])
    note: list[Any] = []
    before = signal.getsignal(TERM)
    see = lambda t, *args: note.append(signal.getsignal(TERM))  # noqa: E731
    trainer.callbacks.append(probes.acting("on_training_step", see)(trainer))
    trainer.train_model(probes.numbered(1), num_epochs=1)
    assert note == [before]


def test_the_state_is_on_the_devices_as_before(stage: probes.Repeatable, tmp_path: Path) -> None:
    trainer = train(stage, tmp_path, send_at(4))
    jax.block_until_ready(trainer.state)
    assert int(trainer.state.step) == trainer.global_step == trainer.progress.step


@pytest.mark.parametrize("hook", ["on_validation_epoch_start", "on_training_step"])
@pytest.mark.parametrize("steps", [4, 8, 10])
def test_a_validation_at_the_end_of_an_epoch_keeps_its_place(
    stage: probes.Repeatable, tmp_path: Path, hook: str, steps: int
) -> None:
    def run(folder: Path, *callbacks: Any) -> Any:
        trainer = stage.begin(*callbacks, SAVING, folder=folder, check_val_every_n_steps=4)
        val = probes.numbered(2, first=100)
        trainer.results = trainer.train_model(probes.numbered(4), val, num_train_steps=steps)
        return trainer

    end = probes.learned(run(tmp_path / "whole"))
    for _ in range(3):  # in the validation of step 4, then in what is made up for
        ended = run(tmp_path / "ended", send_at(4, hook))
        forget_signals()
    assert ended.stop_reason is not None
    trainer = run(tmp_path / "ended")
    probes.assert_same_course(probes.learned(trainer), end)
    assert all_rows(tmp_path / "ended") == all_rows(tmp_path / "whole")
