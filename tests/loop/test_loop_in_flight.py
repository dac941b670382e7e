"""How far the host runs ahead."""

from typing import Any

import jax.numpy as jnp
import probes
import pytest

from xtrainer.data import LoaderPosition
from xtrainer.loop.in_flight import InFlight, Moment
from xtrainer.state import Progress
from xtrainer.step import StepReport


def report(step: int, skipped: int = 0) -> Any:
    return jnp.array([step, skipped, 0, 0, 0, 0, 0], jnp.int32)


def push(in_flight: InFlight, step: int, skipped: int = 0) -> StepReport:
    """Dispatches a step; returns the newest report that was read."""
    in_flight.push(report(step, skipped), [LoaderPosition(0, step)])
    return in_flight.newest


def moment(step: int) -> Moment:
    progress = Progress(step=step, epochs_done=2, step_in_epoch=step, examples=4 * step)
    return Moment.of(progress, LoaderPosition(0, step))


def started(limit: int, skipped: int = 0) -> InFlight:
    in_flight = InFlight(limit, skipped)
    in_flight.start(moment(0))
    return in_flight


def test_a_moment_is_a_copy_of_the_progress() -> None:
    progress = Progress(step=3, epochs_done=1, step_in_epoch=2, examples=9)
    kept = Moment.of(progress, LoaderPosition(1, 2))
    progress.step += 1
    assert kept == Moment(3, 1, 2, LoaderPosition(1, 2))


@pytest.mark.parametrize("limit", [1, 2, 4])
def test_reports_are_read_when_more_than_the_limit_wait(limit: int) -> None:
    in_flight = started(limit)
    newest = [push(in_flight, step).step for step in range(1, 9)]
    assert newest == [max(step - limit, 0) for step in range(1, 9)]


def test_drain_reads_the_last_report() -> None:
    in_flight = started(4)
    for step in (1, 2, 3):
        push(in_flight, step, skipped=step)
    assert in_flight.drain() == StepReport(3, 3, 0, 0)


def test_drain_again_gives_the_same_report() -> None:
    in_flight = started(2)
    push(in_flight, 1)
    assert in_flight.drain() == in_flight.drain() == StepReport(1, 0, 0, 0)


def test_before_a_step_the_skipped_ones_of_earlier_runs_are_known() -> None:
    assert started(2, skipped=5).drain().skipped == 5


@pytest.mark.parametrize("limit", [1, 2, 4])
def test_the_moment_before_the_oldest_unread_step_is_kept(limit: int) -> None:
    in_flight = started(limit)
    for step in range(1, 8):
        push(in_flight, step)
        oldest = max(step - limit, 0)
        assert in_flight.moment(max(oldest - 1, 0)) == moment(max(oldest - 1, 0))
        assert in_flight.moment(step) == moment(step)


def test_a_new_start_forgets_older_moments() -> None:
    in_flight = started(2)
    push(in_flight, 1)
    in_flight.drain()
    after_epoch = moment(1)._replace(epochs_done=3, step_in_epoch=0)
    in_flight.start(after_epoch)
    assert in_flight.moment(1) == after_epoch


@pytest.mark.parametrize("limit", [1, 3])
def test_in_a_run_no_more_reports_than_the_limit_wait(
    stage: probes.Repeatable, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    trainer = stage.begin(max_steps_in_flight=limit, every=1000)
    waiting: list[int] = []
    push = InFlight.push

    def counted(self: InFlight, *args: Any) -> bool:
        trouble = push(self, *args)
        waiting.append(len(self._waiting))
        return trouble

    monkeypatch.setattr(InFlight, "push", counted)
    trainer.train_model(probes.numbered(8), num_epochs=1)
    assert waiting == [min(step, limit) for step in range(1, 9)]


def test_a_report_is_read_only_when_it_must(
    stage: probes.Repeatable, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    fetch = InFlight._read

    def counted(self: InFlight) -> None:
        fetch(self)
        read.append(self.newest.step)

    monkeypatch.setattr(InFlight, "_read", counted)
    trainer = stage.begin(max_steps_in_flight=3, every=1000)
    trainer.train_model(probes.numbered(8), num_epochs=1)
    assert read == [1, 2, 3, 4, 5, 6, 7, 8]  # the last three when the epoch ends


def test_the_examples_of_every_report_are_counted_when_it_is_read() -> None:
    in_flight = InFlight(2, examples=10)
    in_flight.start(moment(0))
    for step in (1, 2, 3):
        in_flight.push(jnp.array([step, 0, 0, 0, 0, 0, 4], jnp.int32), [LoaderPosition(0, step)])
    assert in_flight.examples == 14
    in_flight.drain()
    assert in_flight.examples == 22


def test_a_peek_at_the_last_report_leaves_it_to_be_read() -> None:
    in_flight = started(2)
    push(in_flight, 1)
    assert in_flight.peek().step == 1
    assert in_flight.newest.step == 0


def test_of_several_steps_in_a_dispatch_every_row_counts() -> None:
    in_flight = InFlight(1, steps=3)
    in_flight.start(moment(0))
    rows = [[step, 0, 0, 0, 0, 0, 4] for step in (1, 2, 3)]
    positions = [LoaderPosition(0, step) for step in (1, 2, 3)]
    assert not in_flight.push(jnp.array(rows, jnp.int32), positions)
    assert in_flight.drain() == StepReport(3, 0, 0, 0, 0, 0, 4)
    assert in_flight.examples == 12
    assert [in_flight.moment(step) for step in range(4)] == [moment(step) for step in range(4)]


@pytest.mark.parametrize("column", [2, 4])
def test_a_refused_step_and_an_end_are_trouble(column: int) -> None:
    in_flight = started(1)
    bad = report(1).at[column].set(1)
    assert not in_flight.push(bad, [LoaderPosition(0, 1)])
    assert in_flight.push(bad, [LoaderPosition(0, 2)])


def refusing(*rows: tuple[int, int, int, int]) -> Any:
    """Returns the report of steps by their step, skipped, consecutive and first."""
    return jnp.array([(*row, 0, 0, 0) for row in rows], jnp.int32)


def test_the_batches_of_refused_steps_are_handed_out_once_with_the_positions_before_them() -> None:
    in_flight = InFlight(1, steps=3)
    in_flight.start(moment(0))
    positions = [LoaderPosition(0, number) for number in range(1, 10)]
    batches: Any = [object() for _ in range(9)]
    # Of the steps 1 to 3 the second is refused, of 4 to 6 the last two.
    reports = [
        refusing((1, 0, 0, 0), (2, 1, 1, 2), (3, 1, 0, 0)),
        refusing((4, 1, 0, 0), (5, 2, 1, 5), (6, 3, 2, 5)),
        refusing((7, 3, 0, 0), (8, 3, 0, 0), (9, 3, 0, 0)),
    ]
    troubles, found = [], []
    for number, part in enumerate(reports):
        steps = slice(3 * number, 3 * number + 3)
        troubles.append(in_flight.push(part, positions[steps], batches[steps]))
        found += in_flight.take_refused()
    in_flight.drain()
    assert in_flight.take_refused() == []
    assert troubles == [False, True, True]  # also where the last step of a dispatch was taken
    assert [(step, position.batches) for step, _, position in found] == [(2, 1), (5, 4), (6, 5)]
    assert all(batch is batches[step - 1] for step, batch, _ in found)


def test_the_refused_step_that_ends_a_run_is_handed_out() -> None:
    in_flight = started(1)
    batches: Any = [object(), object(), object()]
    for number, row in enumerate([(1, 0, 0, 0), (1, 1, 1, 2), (1, 1, 1, 2)]):
        in_flight.push(refusing(row)[0], [LoaderPosition(0, number + 1)], [batches[number]])
    in_flight.drain()
    assert in_flight.take_refused() == [(2, batches[1], LoaderPosition(0, 1))]


def test_a_step_that_has_but_lowered_the_scale_of_the_loss_is_no_refused_one() -> None:
    in_flight = started(1)
    batches: Any = [object()]
    for number, row in enumerate([(1, 0, 0, 0), (2, 1, 0, 0), (3, 1, 0, 0)]):
        in_flight.push(refusing(row)[0], [LoaderPosition(0, number + 1)], batches)
    in_flight.drain()
    assert not in_flight.trouble and in_flight.take_refused() == []
