"""A bar on a terminal, and nothing elsewhere."""

import io
import re
from collections.abc import Callable
from typing import Any

import probes
import pytest

import xtrainer as xt
from xtrainer.callbacks import ProgressBar

VAL = probes.numbered(3, first=100)
BAR = xt.ProgressBarConfig(min_interval_s=0.0)


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


def test_the_bar_counts_the_steps_of_the_run(
    stage: probes.Repeatable, terminal: Callable[[], Terminal]
) -> None:
    stream = terminal()
    stage.begin(BAR).train_model(probes.numbered(3), num_epochs=2)
    assert drawn(stream) == [f"{step}/6" for step in range(7)]


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
    assert drawn(stream) == ["3/6", "4/6", "5/6", "6/6"]


def test_a_bar_that_is_moved_seldom_still_counts_all_steps(
    stage: probes.Repeatable, terminal: Callable[[], Terminal]
) -> None:
    stream = terminal()
    config = xt.ProgressBarConfig(min_interval_s=0.0, every_n_steps=2)
    stage.begin(config).train_model(probes.numbered(6), num_epochs=1)
    assert drawn(stream) == ["0/6", "2/6", "4/6", "6/6"]


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
    assert stream.getvalue().endswith("\n")


def test_where_there_is_no_terminal_nothing_is_drawn(
    stage: probes.Repeatable, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    trainer = stage.begin(BAR, enable_progress_bar=True)
    trainer.train_model(probes.numbered(3), VAL, num_epochs=1)
    assert stream.getvalue() == ""


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
