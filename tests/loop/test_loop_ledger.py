"""Is every second of a run in one account, the right one?"""

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import probes
import pytest
from hypothesis import given
from hypothesis import strategies as st

import xtrainer as xt
from xtrainer.loop import Ledger
from xtrainer.loop.ledger import ACCOUNTS

LONG_S = 100.0


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def pass_s(self, seconds: float) -> None:
        """Lets time pass."""
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(clock: Clock) -> Ledger:
    return Ledger(clock)


NAMES = st.sampled_from(ACCOUNTS)
SECONDS = st.integers(0, 9)
# A part: its account, the time before the parts within it, those parts, the time after each.
Part = tuple[str, int, list[Any]]
PARTS = st.recursive(
    st.tuples(NAMES, SECONDS, st.just([])),
    lambda inner: st.tuples(NAMES, SECONDS, st.lists(st.tuples(inner, SECONDS), max_size=3)),
    max_leaves=12,
)


def spend(ledger: Ledger, clock: Clock, part: Part, own: dict[str, int]) -> None:
    """Spends the time of a part, and notes by account what is not spent within others."""
    name, before, inner = part
    with ledger.spent(name, detail=name):
        clock.pass_s(before)
        own[name] = own.get(name, 0) + before
        for each, after in inner:
            spend(ledger, clock, each, own)
            clock.pass_s(after)
            own[name] += after


@given(st.lists(st.tuples(PARTS, SECONDS), max_size=4))
def test_each_second_counts_for_the_innermost_account(parts: list[tuple[Part, int]]) -> None:
    clock, own = Clock(), {}
    ledger = Ledger(clock)
    outside = 0
    for part, between in parts:
        spend(ledger, clock, part, own)
        clock.pass_s(between)  # nothing is open: the clock stands still
        outside += between
    assert {name: seconds for name, seconds in ledger.seconds.items() if seconds} == {
        name: seconds for name, seconds in own.items() if seconds
    }
    assert ledger.total == clock.now - 1000.0 - outside
    shares = ledger.shares()
    assert sum(shares.values()) == pytest.approx(1.0 if ledger.total else 0.0)
    assert set(shares) == set(ACCOUNTS)


def test_inner_time_is_not_counted_for_the_outer_account(ledger: Ledger, clock: Clock) -> None:
    with ledger.spent("step"):
        clock.pass_s(1)
        with ledger.spent("validation"):
            clock.pass_s(2)
            with ledger.spent("logging"):
                clock.pass_s(4)
            clock.pass_s(8)
        clock.pass_s(16)
    seconds = ledger.seconds
    assert (seconds["step"], seconds["validation"], seconds["logging"]) == (17, 10, 4)


def test_a_detail_is_counted_with_all_that_is_inside(ledger: Ledger, clock: Clock) -> None:
    for _ in range(2):
        with ledger.spent("callbacks", "Slow"):
            clock.pass_s(1)
            with ledger.spent("logging"):
                clock.pass_s(2)
    assert ledger.details == {"Slow": 6}
    assert ledger.seconds["callbacks"] == 2


def test_moved_seconds_change_their_account_and_not_the_whole(ledger: Ledger, clock: Clock) -> None:
    with ledger.spent("step"):
        clock.pass_s(10)
    ledger.move("step", "data_wait", 3)
    assert (ledger.seconds["step"], ledger.seconds["data_wait"], ledger.total) == (7, 3, 10)
    assert ledger.shares()["data_wait"] == 0.3


def test_an_exception_closes_what_was_open(ledger: Ledger, clock: Clock) -> None:
    with pytest.raises(ValueError, match="planted"), ledger.spent("idle"):
        with ledger.spent("callbacks", "Bad"):
            clock.pass_s(3)
            raise ValueError("planted")
    clock.pass_s(50)  # nothing is open
    with ledger.spent("step"):
        clock.pass_s(1)
    assert (ledger.seconds["callbacks"], ledger.seconds["step"], ledger.total) == (3, 1, 4)
    assert ledger.details == {"Bad": 3}


def test_an_unknown_account_is_refused(ledger: Ledger, clock: Clock) -> None:
    with pytest.raises(KeyError, match="stepp"), ledger.spent("stepp"):
        pass


def test_where_nothing_was_spent_there_are_no_shares(ledger: Ledger) -> None:
    assert set(ledger.shares().values()) == {0.0}
    assert ledger.summary() == "0.0 s: "


def test_the_summary_has_the_largest_account_first(ledger: Ledger, clock: Clock) -> None:
    for name, seconds in {"step": 1.0, "data_wait": 2.9995, "init": 0.0005}.items():
        with ledger.spent(name):
            clock.pass_s(seconds)
    assert ledger.summary() == "4.0 s: data_wait 75.0%, step 25.0%"


@pytest.mark.parametrize(
    ("slow", "whole", "warns"),
    [(20, 100, True), (9, 100, False), (20, 29, False), (4, 31, True), (3, 31, False)],
)
def test_large_parts_of_long_runs_are_warned_of(
    ledger: Ledger,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
    slow: int,
    whole: int,
    warns: bool,
) -> None:
    with ledger.spent("idle"):
        with ledger.spent("callbacks", "Slow"):
            clock.pass_s(slow)
        clock.pass_s(whole - slow)
    with caplog.at_level(logging.WARNING):
        ledger.warn_of_large_parts()
    assert (f"Slow took {slow}.0 s, {100 * slow / whole:.0f} % of the run" in caplog.text) is warns
    assert bool(caplog.records) is warns
    assert ("every_n_epochs, every_n_steps of its config" in caplog.text) is warns


@pytest.mark.parametrize(("waited", "warns"), [(4, True), (3, False)])
def test_a_loader_that_takes_much_of_a_run_is_named(
    ledger: Ledger, clock: Clock, caplog: pytest.LogCaptureFixture, waited: int, warns: bool
) -> None:
    with ledger.spent("step"):
        with ledger.waiting("train"):
            clock.pass_s(1.0)
        clock.pass_s(39.0)
    ledger.waited("train", "step", waited - 0.5)
    ledger.waited("val", "step", 0.5)
    assert ledger.waits == {"train": waited + 0.5, "val": 0.5}
    assert ledger.seconds["data_wait"] == waited + 1.0
    assert ledger.total == 40.0
    with caplog.at_level(logging.WARNING):
        ledger.warn_of_large_parts()
    said = f"The run is data-bound: it has waited {waited}.5 s, 11 % of its time, for the 'train' "
    assert (said in caplog.text) is warns
    assert bool(caplog.records) is warns


# A run with planted delays.


class SlowLogger(probes.Memory):
    """A logger whose every training row takes a while."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def log_metrics(self, metrics: Any, step: int, mode: str, epoch: int) -> None:
        """Keeps a row, slowly."""
        self.clock.pass_s(LONG_S)
        super().log_metrics(metrics, step, mode, epoch)


class SlowCheckpoint(xt.Callback):
    """A callback whose time is that of checkpoints."""

    clock: Clock

    @property
    def account(self) -> tuple[str, str]:
        """See the base class."""
        return "checkpoint", type(self).__name__

    def on_training_epoch_end(self, train_metrics: Any, epoch_idx: int) -> None:
        """Saves, slowly."""
        self.clock.pass_s(7 * LONG_S)


def test_planted_delays_are_found_in_their_accounts(stage: probes.Repeatable, clock: Clock) -> None:
    def slow_validation() -> Iterator[probes.Batch]:
        yield probes.one(100)  # this one is read before the run, to look at it
        clock.pass_s(5 * LONG_S)
        yield probes.one(101)

    def saving(trainer: Any) -> xt.Callback:
        callback = SlowCheckpoint(xt.CallbackConfig(), trainer)
        callback.clock = clock
        return callback

    slow_step = probes.acting("on_training_step", lambda *_: clock.pass_s(3 * LONG_S))
    slow_start = probes.acting("on_training_start", lambda *_: clock.pass_s(2 * LONG_S))
    trainer = stage.begin(slow_step, slow_start, saving, every=2)
    trainer.logger, kept = SlowLogger(clock), trainer.ledger
    trainer.ledger = ledger = Ledger(clock)
    try:
        trainer.train_model(probes.numbered(4), slow_validation(), num_epochs=1)
    finally:
        trainer.ledger = kept
    modes = [mode for mode, *_ in trainer.logger.all]
    assert sorted(modes) == ["train", "train", "train_epoch", "val"]
    expected = {"logging": 4, "callbacks": 4 * 3 + 2, "checkpoint": 7, "validation": 5}
    for account, share in expected.items():
        assert ledger.seconds[account] == pytest.approx(share * LONG_S, rel=0.02)
    # No other account has any, but for waits, which other clocks measure.
    planted = sum(expected.values()) * LONG_S
    assert ledger.total == clock.now - 1000.0 == pytest.approx(planted)
    assert sum(ledger.shares().values()) == pytest.approx(1.0)
    assert ledger.details["Recorder"] == 14 * LONG_S
    assert ledger.details["SlowCheckpoint"] == 7 * LONG_S


def test_the_wait_for_a_slow_loader_is_found_in_its_account(stage: probes.Repeatable) -> None:
    def slow() -> Iterator[probes.Batch]:
        for batch in probes.numbered(4):
            threading.Event().wait(0.05)
            yield batch

    trainer = stage.begin()
    trainer.train_model(probes.numbered(1), num_epochs=1)  # compiled, if it was not
    trainer = stage.begin()
    kept, trainer.ledger = trainer.ledger, Ledger()
    ledger = trainer.ledger
    try:
        trainer.train_model(slow(), num_epochs=1)
    finally:
        trainer.ledger = kept
    assert ledger.waits["train"] >= 0.9 * 3 * 0.05
    assert ledger.seconds["data_wait"] >= 0.9 * 3 * 0.05  # the first may be read ahead of the steps
    assert all(seconds >= 0 for seconds in ledger.seconds.values())


def test_a_run_that_fails_leaves_the_ledger_closed(
    stage: probes.Repeatable, clock: Clock, tmp_path: Path
) -> None:
    def fail(*args: Any) -> None:
        clock.pass_s(LONG_S)
        raise ValueError("planted")

    trainer = stage.begin(probes.acting("on_training_step", fail))
    kept, trainer.ledger = trainer.ledger, Ledger(clock)
    ledger = trainer.ledger
    try:
        with pytest.raises(ValueError, match="planted"):
            trainer.train_model(probes.numbered(4), num_epochs=1)
    finally:
        trainer.ledger = kept
    clock.pass_s(LONG_S)
    with ledger.spent("idle"):
        pass
    assert ledger.total == ledger.seconds["callbacks"] == LONG_S
