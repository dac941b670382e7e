"""A part that fails costs no step: the state is saved first, and the run goes on exactly there."""

import contextlib
import itertools
import logging
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import probes
import pytest
import zoo

import xtrainer as xt
from xtrainer.checkpoint import list_steps
from xtrainer.errors import LoaderError, LoaderTimeoutError

WAIT_S = 10.0
DURING = [hook for hook in probes.HOOKS if hook not in ("on_exception", "finalize")]
MIDDLE = [h for h in DURING if h != "on_training_start" and "_test_" not in h]
BATCHES, EPOCHS = 5, 3
VAL = probes.numbered(2, first=100)
EVERY = 2
"""Steps of a row, so that rows are open at most places."""


class Planted(Exception):
    """What the tests throw."""


@pytest.fixture(scope="module")
def stage() -> probes.Repeatable:
    """Gives a trainer that is compiled once for all tests of this file."""
    return probes.Repeatable(probes.traced())


def failing(hook: str, call: int = 2, error: type[BaseException] = Planted) -> Any:
    """Returns what makes a callback that fails from the ``call``-th call of a hook on."""
    calls = itertools.count(1)

    def act(trainer: Any, *args: Any) -> None:
        if next(calls) >= call:
            raise error(hook)

    return probes.acting(hook, act)


def train(trainer: Any, loader: Any = None, epochs: int = EPOCHS) -> dict[str, Any]:
    loader = probes.numbered(BATCHES) if loader is None else loader
    return trainer.train_model(loader, VAL, num_epochs=epochs)


def rows(folder: Path) -> dict[str, Any]:
    return {mode: zoo.rows_of(folder, mode) for mode in ("train", "train_epoch", "val")}


def begin(stage: probes.Repeatable, folder: Path, *callbacks: Any, **config: Any) -> Any:
    """Returns a trainer with the default of checkpoints, which saves after each validation."""
    saving = xt.ModelCheckpointConfig(log_path=str(folder / "checkpoints"), **config)
    options = {"every": EVERY, "folder": folder, "check_val_every_n_steps": 4}
    return stage.begin(*callbacks, saving, **options)


@pytest.fixture(scope="module")
def whole(stage: probes.Repeatable, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Gives what a run without a failure has learned, returned and logged."""
    folder = tmp_path_factory.mktemp("whole")
    trainer = begin(stage, folder)
    results = train(trainer)
    return probes.learned(trainer), results, rows(folder)


def assert_goes_on(stage: probes.Repeatable, folder: Path, whole: Any) -> None:
    """Fails unless the run, begun again, ends as one that has never failed."""
    again = begin(stage, folder)
    results = train(again)
    probes.assert_same_course(probes.learned(again), whole[0])
    assert results.items() <= whole[1].items()
    assert rows(folder) == whole[2]


# Callbacks.


@pytest.mark.parametrize(
    "hook", [h for h in DURING if "training_start" not in h and "test" not in h]
)
def test_a_hook_that_fails_ends_the_run_after_a_save_that_it_goes_on_from_exactly(
    stage: probes.Repeatable, tmp_path: Path, whole: Any, hook: str
) -> None:
    call = 1 if hook == "on_training_end" else 7 if hook == "on_training_step" else 2
    trainer = begin(stage, tmp_path, failing(hook, call))
    with pytest.raises(Planted, match=hook):
        train(trainer)
    failed_at = trainer.global_step
    assert trainer.stop_reason is xt.StopReason.FAILED
    assert list_steps(tmp_path / "checkpoints")[-1] == failed_at >= 4
    assert_goes_on(stage, tmp_path, whole)


@pytest.mark.parametrize("steps", [2 * BATCHES, 2 * BATCHES + 2])
def test_what_is_due_after_the_last_step_is_made_up_for(
    stage: probes.Repeatable, tmp_path: Path, steps: int
) -> None:
    def run(folder: Path, *callbacks: Any) -> tuple[Any, dict[str, Any]]:
        trainer = begin(stage, folder, *callbacks)
        results = trainer.train_model(probes.numbered(BATCHES), VAL, num_train_steps=steps)
        return probes.learned(trainer), results

    learned, results = run(tmp_path / "whole")
    with pytest.raises(Planted):
        run(tmp_path / "broken", failing("on_training_step", steps))
    again, made_up = run(tmp_path / "broken")
    probes.assert_same_course(again, learned)
    assert made_up.items() <= results.items() and list(made_up)[-1] == list(results)[-1]
    assert rows(tmp_path / "broken") == rows(tmp_path / "whole")
    assert run(tmp_path / "broken")[1].keys() <= made_up.keys()  # and only once


def test_the_validation_of_a_step_that_was_not_taken_comes_when_it_is(
    stage: probes.Repeatable, tmp_path: Path, whole: Any
) -> None:
    trainer = begin(stage, tmp_path)
    train(trainer, probes.numbered(BATCHES, bad=[4]))
    assert trainer.stop_reason is xt.StopReason.NONFINITE and trainer.global_step == 3
    again = begin(stage, tmp_path)
    train(again)
    assert rows(tmp_path)["val"] == whole[2]["val"]


def test_where_nothing_was_trained_nothing_is_saved(
    stage: probes.Repeatable, tmp_path: Path, whole: Any
) -> None:
    with pytest.raises(Planted):
        train(begin(stage, tmp_path, failing("on_training_start", 1)))
    assert list_steps(tmp_path / "checkpoints") == []
    train(begin(stage, tmp_path), epochs=1)
    saved = list_steps(tmp_path / "checkpoints")
    with pytest.raises(Planted):  # nor where nothing was trained since a checkpoint
        train(begin(stage, tmp_path, failing("on_training_start", 1)))
    assert list_steps(tmp_path / "checkpoints") == saved
    assert_goes_on(stage, tmp_path, whole)


def test_the_save_is_committed_before_other_callbacks_hear_of_the_error(
    stage: probes.Repeatable, tmp_path: Path
) -> None:
    seen: list[Any] = []
    note = lambda trainer, error: seen.append(list_steps(tmp_path / "checkpoints"))  # noqa: E731
    callbacks = [
        failing("on_exception", 1),
        probes.acting("on_exception", note),
        failing("on_training_step", 3),
        failing("finalize", 1),
    ]
    closed = [probes.Recorder(stage.trainer, hooks=("on_exception", "finalize")) for _ in range(2)]
    trainer = begin(stage, tmp_path, lambda t: closed[0], *callbacks, lambda t: closed[1])
    with pytest.raises(Planted, match="on_training_step") as caught:
        train(trainer)
    assert seen == [[3]]
    assert [c.names() for c in closed] == [["on_exception", "finalize"]] * 2
    assert [note for note in caught.value.__notes__ if "While closing" in note] == [
        "While closing: Planted: on_exception",
        "While closing: Planted: finalize",
    ]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_program_that_is_to_end_at_once_saves_nothing(
    stage: probes.Repeatable, tmp_path: Path, error: type[BaseException]
) -> None:
    with pytest.raises(error):
        train(begin(stage, tmp_path, failing("on_training_step", 3, error)))
    assert list_steps(tmp_path / "checkpoints") == []


def test_a_checkpoint_that_failed_is_not_tried_again(
    stage: probes.Repeatable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def fail(self: Any, step: int, *args: Any, **kwargs: Any) -> None:
        tried.append(step)
        raise xt.errors.CheckpointWriteError("no space")

    monkeypatch.setattr("xtrainer.checkpoint.CheckpointManager.save", fail)
    with pytest.raises(xt.errors.CheckpointWriteError, match="no space"):
        train(begin(stage, tmp_path))
    assert tried == [4]


def test_a_callback_may_change_the_state_and_what_it_puts_there_is_trained_and_saved(
    stage: probes.Repeatable, tmp_path: Path
) -> None:
    import jax

    def halve(trainer: Any, *args: Any) -> None:
        if trainer.global_step == 3:
            params = jax.tree.map(lambda x: x / 2, trainer.state.params)
            trainer.state = trainer.state.replace(params=params)

    first = begin(
        stage,
        tmp_path / "a",
        probes.acting("on_training_step", halve),
        every_n_steps=3,
        max_to_keep=None,
    )
    train(first, epochs=1)
    assert list_steps(tmp_path / "a" / "checkpoints")[0] == 3
    plain = begin(stage, tmp_path / "b")
    plain.train_model(probes.numbered(3), num_train_steps=3)
    halved = zoo.host(jax.tree.map(lambda x: x / 2, plain.state.params))
    again = begin(stage, tmp_path / "a")
    again.load_model(3)
    zoo.assert_same(again.state.params, halved)


# Loaders.


class Loader:
    """Batches that can be read again; before one of them it does something."""

    def __init__(self, at: int, act: Any) -> None:
        self.at, self.act = at, act

    def __len__(self) -> int:
        return BATCHES

    def __iter__(self) -> Iterator[probes.Batch]:
        for number, batch in enumerate(probes.numbered(BATCHES), start=1):
            if number == self.at:
                self.act()
            yield batch


def broken() -> None:
    raise Planted("loader")


@pytest.mark.parametrize("at", [2, 3, BATCHES])
def test_a_loader_that_fails_within_an_epoch_ends_the_run_after_a_save(
    stage: probes.Repeatable, tmp_path: Path, whole: Any, at: int
) -> None:
    with pytest.raises(Planted) as caught:
        train(begin(stage, tmp_path), Loader(at, broken))
    assert f"while reading batch {at} of the 'train' loader" in caught.value.__notes__
    assert list_steps(tmp_path / "checkpoints")[-1] == at - 1
    assert_goes_on(stage, tmp_path, whole)


def test_a_loader_of_a_validation_that_fails_costs_no_step_either(
    stage: probes.Repeatable, tmp_path: Path, whole: Any
) -> None:
    passes = itertools.count(1)

    class Val:
        def __iter__(self) -> Iterator[probes.Batch]:
            yield VAL[0]
            if next(passes) >= 3:
                raise Planted("loader")
            yield VAL[1]

    trainer = begin(stage, tmp_path)
    with pytest.raises(Planted):
        trainer.train_model(probes.numbered(BATCHES), Val(), num_epochs=EPOCHS)
    assert list_steps(tmp_path / "checkpoints")[-1] == trainer.global_step >= 4
    assert_goes_on(stage, tmp_path, whole)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    made = threading.Event()
    yield made
    made.set()


def test_a_loader_that_hangs_is_an_error_after_a_save(
    stage: probes.Repeatable, tmp_path: Path, whole: Any, gate: threading.Event
) -> None:
    trainer = begin(stage, tmp_path)
    trainer.sources.timeout_s = 0.3
    start = time.monotonic()
    with pytest.raises(
        LoaderTimeoutError, match="Found no batch 3 of the 'train' loader"
    ) as caught:
        train(trainer, Loader(3, lambda: gate.wait(WAIT_S)))
    assert time.monotonic() - start < WAIT_S / 2
    assert "gate.wait" in str(caught.value)
    assert trainer.ledger.waits["train"] >= 0.3
    assert list_steps(tmp_path / "checkpoints") == [2]
    gate.set()
    assert_goes_on(stage, tmp_path, whole)


def test_the_limit_is_that_of_the_config() -> None:
    made = probes.traced(loader_timeout_s=17.0)
    assert made.sources.of(probes.numbered(1), "train").timeout_s == 17.0
    assert xt.TrainerConfig().loader_timeout_s == 1800.0
    assert xt.TrainerConfig(loader_timeout_s=-1.0).problems() == []
    (problem,) = xt.TrainerConfig(loader_timeout_s=float("nan")).problems()
    assert "loader_timeout_s: found nan" in problem


def test_a_loader_without_a_state_is_declared_when_the_run_goes_on(
    stage: probes.Repeatable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Planted):
        train(begin(stage, tmp_path), Loader(4, broken))
    with caplog.at_level(logging.WARNING, logger="xtrainer"):
        train(begin(stage, tmp_path), Loader(0, broken))
    assert "needs get_state() and set_state()): reading and dropping 3 batches" in caplog.text


def test_a_loader_that_goes_on_with_less_data_than_it_had_read_is_refused(
    stage: probes.Repeatable, tmp_path: Path
) -> None:
    with pytest.raises(Planted):
        train(begin(stage, tmp_path), Loader(4, broken))
    trainer = begin(stage, tmp_path)
    with pytest.raises(LoaderError, match="ended after 2 of the 3 batches before its saved posi"):
        train(trainer, probes.numbered(2))


# Loggers.


class Broken(xt.LoggerTool):
    """A tool that fails in one of its methods."""

    def __init__(self, method: str) -> None:
        self.method = method
        self.calls: list[str] = []

    def state_dict(self) -> dict[str, Any]:
        self.note("state_dict")
        return {}

    def note(self, name: str) -> None:
        """Notes a call, and fails in the method that was chosen."""
        self.calls.append(name)
        if name == self.method:
            raise Planted(name)


METHODS = ("open", "log_config", "log_metrics", "log_text", "flush", "state_dict", "finalize")
for _name in METHODS:
    if _name != "state_dict":
        setattr(Broken, _name, lambda self, *args, name=_name: self.note(name))


@dataclass(frozen=True, kw_only=True)
class BrokenConfig(xt.LoggerToolConfig):
    """Of a tool that fails in a method."""

    method: str

    def create(self, folder: Path | None) -> xt.LoggerTool:
        if self.method == "create":
            raise Planted("create")
        return Broken(self.method)


def logging_to(trainer: Any, folder: Path, method: str, **config: Any) -> None:
    tools = [xt.FileLoggerConfig(), BrokenConfig(method=method)]
    logger = xt.LoggerConfig(
        log_path=str(folder),
        log_every_n_steps=EVERY,
        log_tools=tools,
        write_interval_s=0.0,
        **config,
    )
    trainer.init_logger(logger)


@pytest.mark.parametrize("method", METHODS[1:])
def test_a_logger_that_fails_costs_neither_a_step_nor_a_row_of_others(
    stage: probes.Repeatable,
    tmp_path: Path,
    whole: Any,
    method: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("xtrainer.loggers.guarded._FIRST_PAUSE_S", 0.0)
    trainer = begin(stage, tmp_path)
    logging_to(trainer, tmp_path, method, tool_retries=2)
    tool = trainer.logger.tools[-1].tool.tool
    with caplog.at_level(logging.INFO, logger="xtrainer"):
        results = train(trainer)
    assert trainer.stop_reason is xt.StopReason.FINISHED
    assert results == whole[1]
    probes.assert_same_course(probes.learned(trainer), whole[0])
    assert rows(tmp_path) == whole[2]
    assert len(list_steps(tmp_path / "checkpoints")) >= 2
    assert method in tool.calls
    first = [r for r in caplog.records if r.getMessage().startswith("Broken has failed. ")]
    assert len(first) == 1 and first[0].exc_info is not None
    if method == "log_metrics":
        lost = len([row for mode in whole[2].values() for row in mode]) + 1  # and the summary
        assert tool.calls.count("log_metrics") == 3
        assert f"Broken: {lost} rows were lost in all." in caplog.text


@pytest.mark.parametrize("method", ["create", "open"])
def test_a_logger_that_fails_at_the_start_is_an_error_before_the_first_step(
    stage: probes.Repeatable, tmp_path: Path, method: str
) -> None:
    trainer = begin(stage, tmp_path)
    with pytest.raises(Planted, match=method):
        logging_to(trainer, tmp_path, method)
        train(trainer)
    assert trainer.global_step == 0


def test_where_asked_an_error_of_a_logger_ends_the_run_after_a_save(
    stage: probes.Repeatable, tmp_path: Path, whole: Any
) -> None:
    trainer = begin(stage, tmp_path)
    logging_to(trainer, tmp_path, "log_metrics", on_tool_error="raise")
    with pytest.raises(Planted, match="log_metrics"):
        train(trainer)
    assert list_steps(tmp_path / "checkpoints")[-1] == trainer.global_step == 4
    again = begin(stage, tmp_path)
    train(again)
    probes.assert_same_course(probes.learned(again), whole[0])


# Nothing to do.


@pytest.mark.parametrize("end", [{"num_train_steps": 4}, {"num_epochs": 1}, {"num_epochs": 0}])
def test_a_run_that_is_to_end_before_the_step_it_is_restored_at_does_nothing_and_says_so(
    stage: probes.Repeatable,
    tmp_path: Path,
    end: dict[str, int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    train(begin(stage, tmp_path), epochs=2)
    before, saved = rows(tmp_path), list_steps(tmp_path / "checkpoints")
    trainer = begin(stage, tmp_path)
    with caplog.at_level(logging.INFO, logger="xtrainer"):
        trainer.train_model(probes.numbered(BATCHES), VAL, **end)
    assert trainer.global_step == int(trainer.state.step) == 2 * BATCHES
    assert trainer.stop_reason is xt.StopReason.NOTHING_TO_DO
    assert trainer.stop_reason.completed
    assert xt.StopReason.NOTHING_TO_DO.value in caplog.text
    assert (rows(tmp_path), list_steps(tmp_path / "checkpoints")) == (before, saved)


# Clocks.


def test_a_clock_that_jumps_changes_no_duration_and_no_order(
    stage: probes.Repeatable, tmp_path: Path, whole: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, now, jumps = time.time, [0.0], {2: 3600.0, 6: -3600.0, 9: 0.0, 12: 3600.0}
    monkeypatch.setattr(time, "time", lambda: real() + now[0])

    def jump(trainer: Any, metrics: Any, epoch: int, step: int) -> None:
        now[0] = jumps.get(step, now[0])

    before = xt.loop.Ledger.to_json(stage.trainer.ledger)
    start = time.monotonic()
    with contextlib.ExitStack() as stack:
        stack.callback(monkeypatch.undo)
        clock = probes.acting("on_training_step", jump)
        trainer = begin(stage, tmp_path, clock, max_to_keep=None)
        train(trainer)
    took = time.monotonic() - start
    after = trainer.ledger.to_json()
    assert all(0 <= after[name] - before[name] <= took for name in after)
    assert rows(tmp_path) == whole[2]
    for row in xt.read_metrics(tmp_path):
        seconds = [v for k, v in row["metrics"].items() if k.endswith("time_s")]
        assert all(0 <= value <= took for value in seconds)
        assert row["time"].endswith("+00:00")
    folder = tmp_path / "checkpoints"
    for age, step in enumerate(list_steps(folder)):  # the newest step gets the oldest time
        for path in [folder / str(step), *(folder / str(step)).rglob("*")]:
            os.utime(path, (1e9 - 3600 * age,) * 2)
    assert begin(stage, tmp_path).load_model() == max(list_steps(folder)) == BATCHES * EPOCHS
