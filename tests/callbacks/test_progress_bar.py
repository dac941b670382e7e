"""A bar on a terminal, and nothing elsewhere."""

import io
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import probes
import pytest

import xtrainer as xt
from xtrainer.callbacks import ProgressBar

VAL = probes.numbered(3, first=100)
BAR = xt.ProgressBarConfig(min_interval_s=0.0)
THREAD = "progress-bar"


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Terminal]:
    """Returns what makes stderr a terminal; called in the test, since pytest resets stderr."""

    def make() -> Terminal:
        stream = Terminal()
        monkeypatch.setattr("sys.stderr", stream)
        return stream

    return make


def drawn(stream: io.StringIO, title: str = "train") -> list[str]:
    """Returns the states of a bar as ``done/total``."""
    found = []
    for line in stream.getvalue().split("\r"):
        match = re.search(rf"{title}:.*?(\d+/\d+|\d+step)", line)
        if match and match.group(1) not in found[-1:]:
            found.append(match.group(1))
    return found


def done(stream: io.StringIO) -> list[int]:
    """Returns the steps that a bar has shown, one for each drawing."""
    return [int(re.findall(r"\d+", state)[0]) for state in drawn(stream)]


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == THREAD]


def wait_until(condition: Callable[[], bool]) -> Callable[..., None]:
    """Returns what a hook may do: let time pass until something is so."""

    def wait(*args: Any) -> None:
        end = time.monotonic() + 10.0
        while not condition():
            assert time.monotonic() < end, "waited in vain"
            threading.Event().wait(0.001)

    return wait


@pytest.fixture(autouse=True)
def no_bar_is_left() -> Iterator[None]:
    """Fails a test that leaves a thread drawing."""
    yield
    assert threads() == []


def test_the_bar_begins_with_the_first_step_and_ends_with_the_last(
    stage: probes.Repeatable, terminal: Callable[[], Terminal]
) -> None:
    stream = terminal()
    stage.begin(BAR).train_model(probes.numbered(3), num_epochs=2)
    states = drawn(stream)
    assert (states[0], states[-1]) == ("0/6", "6/6")
    assert done(stream) == sorted(done(stream))


def test_the_bar_moves_while_the_run_goes_on(
    stage: probes.Repeatable, terminal: Callable[[], Terminal]
) -> None:
    stream = terminal()
    trainer: Any = None
    wait = wait_until(lambda: done(stream)[-1] == trainer.global_step)
    trainer = stage.begin(BAR, probes.acting("on_training_step", wait))
    trainer.train_model(probes.numbered(3), num_epochs=2)
    assert drawn(stream) == [f"{step}/6" for step in range(7)]


def test_the_bar_waits_between_two_drawings(
    stage: probes.Repeatable, terminal: Callable[[], Terminal]
) -> None:
    stream = terminal()
    config = xt.ProgressBarConfig(min_interval_s=3600.0)
    stage.begin(config).train_model(probes.numbered(3), num_epochs=2)
    assert drawn(stream) == ["0/6", "6/6"]


def test_the_bar_costs_no_step_anything(
    stage: probes.Repeatable, terminal: Callable[[], Terminal]
) -> None:
    terminal()
    trainer = stage.begin(BAR)
    assert [trainer.callbacks[0].next_step(step) for step in range(3)] == [None] * 3
    assert trainer.step_hooks() == []


def test_steps_are_dispatched_together_under_a_bar(
    terminal: Callable[[], Terminal], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = terminal()
    trainer = probes.Repeatable(probes.traced(steps_per_dispatch=4)).begin(BAR, every=4)
    executor, sizes = type(trainer.compiled_train_step), []
    many = executor.many

    def counted(self: Any, state: Any, batches: Any, *args: Any) -> Any:
        sizes.append(len(batches))
        return many(self, state, batches, *args)

    monkeypatch.setattr(executor, "many", counted)
    trainer.train_model(probes.numbered(8), num_epochs=1)
    assert sizes == [4, 4]
    assert drawn(stream)[-1] == "8/8"


def test_the_bar_shows_the_newest_loss_and_the_epoch(
    stage: probes.Repeatable, terminal: Callable[[], Terminal]
) -> None:
    stream = terminal()
    trainer = stage.begin(BAR, every=2)
    trainer.train_model(probes.numbered(4), num_epochs=1)
    loss = trainer.logger.column("loss_mean")[-1]
    assert f"epoch=1, loss={loss:.4g}" in stream.getvalue()


def test_a_run_that_goes_on_begins_where_it_was(
    stage: probes.Repeatable, terminal: Callable[[], Terminal]
) -> None:
    stream = terminal()
    trainer, batches = stage.begin(BAR), probes.numbered(3)
    trainer.train_model(batches, num_epochs=1)
    stream = terminal()
    trainer.train_model(batches, num_epochs=2)
    states = drawn(stream)
    assert (states[0], states[-1]) == ("3/6", "6/6")
    assert done(stream) == sorted(done(stream))


def test_a_run_of_unknown_length_has_no_total(
    stage: probes.Repeatable, terminal: Callable[[], Terminal]
) -> None:
    stream = terminal()
    stage.begin(BAR).train_model(probes.generate(probes.numbered(3)), num_epochs=1)
    assert drawn(stream)[-1] == "3step"


def test_an_error_leaves_the_bar_closed(
    stage: probes.Repeatable, terminal: Callable[[], Terminal]
) -> None:
    stream = terminal()

    def fail(*args: Any) -> None:
        raise ValueError("planted")

    trainer = stage.begin(BAR, probes.acting("on_training_step", fail))
    with pytest.raises(ValueError, match="planted"):
        trainer.train_model(probes.numbered(3), num_epochs=1)
    assert trainer.callbacks[0].bar is None
    assert threads() == []
    assert drawn(stream)[-1] == "1/3"
    assert stream.getvalue().endswith("\n")


def test_a_run_leaves_no_thread_and_has_one_while_it_goes_on(
    stage: probes.Repeatable, terminal: Callable[[], Terminal]
) -> None:
    terminal()
    seen: list[tuple[int, bool]] = []

    def look(*args: Any) -> None:
        seen.append((len(threads()), all(thread.daemon for thread in threads())))

    trainer = stage.begin(BAR, probes.acting("on_training_step", look))
    for epochs in (1, 2):
        trainer.train_model(probes.numbered(2), num_epochs=epochs)
        assert threads() == []
    assert seen == [(1, True)] * 4


def test_where_there_is_no_terminal_nothing_is_drawn(
    stage: probes.Repeatable, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    seen: list[int] = []
    look = probes.acting("on_training_step", lambda *_: seen.append(len(threads())))
    trainer = stage.begin(BAR, look, enable_progress_bar=True)
    trainer.train_model(probes.numbered(3), VAL, num_epochs=1)
    assert stream.getvalue() == ""
    assert seen == [0, 0, 0]


@pytest.mark.parametrize(("enabled", "bars"), [(True, 1), (False, 0)])
def test_a_trainer_adds_a_bar_where_bars_are_enabled(
    stage: probes.Repeatable, enabled: bool, bars: int
) -> None:
    trainer = stage.begin(enable_progress_bar=enabled)
    assert sum(isinstance(each, ProgressBar) for each in trainer.callbacks) == bars


def test_an_evaluation_has_a_bar_where_bars_are_enabled(
    stage: probes.Repeatable, terminal: Callable[[], Terminal]
) -> None:
    stream = terminal()
    stage.begin().eval_model(VAL)
    assert stream.getvalue() == ""
    stage.begin(enable_progress_bar=True).eval_model(VAL)
    assert "/3 [" in stream.getvalue() and "val" in stream.getvalue()


def test_a_terminal_that_takes_nothing_does_not_hold_up_the_end_of_a_run(
    stage: probes.Repeatable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xtrainer.callbacks.progress_bar._JOIN_S", 0.05)
    taken = threading.Event()
    (bar,) = stage.begin(BAR).callbacks
    assert isinstance(bar, ProgressBar)
    bar.bar, bar._ended = object(), threading.Event()  # drawing on it would be an error
    bar._thread = threading.Thread(target=taken.wait, args=(60,), daemon=True)
    bar._thread.start()
    bar.finalize("finished")
    assert bar.bar is None and bar._thread is None
    taken.set()
