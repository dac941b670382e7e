"""When rows are given out, and over which steps, without a device loop."""

import jax.numpy as jnp
import numpy as np
import pytest

from xtrainer.loop.windows import MetricWindows
from xtrainer.metrics import DeviceMetrics, MetricLayout, accumulate
from xtrainer.step import StepReport
from xtrainer.types import HostMetrics

LAYOUT = MetricLayout.of({"loss": ("mean_nopostfix", "max"), "rare": ("mean_nopostfix",)})


class Course:
    """Steps whose loss is their number, with that many examples; ``rare`` is never measured."""

    def __init__(self, every: int) -> None:
        self.rows: list[tuple[int, int, HostMetrics]] = []
        new_window = lambda: DeviceMetrics.zeros(LAYOUT)  # noqa: E731
        self.windows = MetricWindows(new_window, self.emit)
        self.every = every
        self.step = 0
        self.refused = 0

    def emit(self, metrics: HostMetrics, last: StepReport, epoch: int) -> None:
        self.rows.append((last.step, epoch, metrics))

    def take(self, steps: int = 1, epoch: int = 1, accept: bool = True) -> None:
        for _ in range(steps):
            self.step += 1
            n = np.float32(self.step)
            sums, counts = np.array([n * n, 0.0], np.float32), np.array([n, 0.0], np.float32)
            windows = self.windows
            windows.current = accumulate(windows.current, sums, counts, accept)
            self.refused += not accept
            windows.step = self.step
            if self.step % self.every == 0:
                windows.cut(epoch, jnp.array([self.step, self.refused, 0, 0, 0, 0, 0]))

    def close(self, epoch: int = 1) -> None:
        self.windows.close(StepReport(self.step, self.refused, 0, 0), epoch)


def mean(*steps: int) -> float:
    return float(np.average(steps, weights=steps))


def test_a_row_is_given_out_when_the_next_one_is_full() -> None:
    course = Course(every=3)
    course.take(5)
    assert course.rows == []
    course.take()
    assert [step for step, _, _ in course.rows] == [3]


def test_a_row_covers_exactly_its_steps() -> None:
    course = Course(every=3)
    course.take(6)
    course.close()
    assert course.rows == [
        (3, 1, {"loss": pytest.approx(mean(1, 2, 3)), "loss_max": 3.0}),
        (6, 1, {"loss": pytest.approx(mean(4, 5, 6)), "loss_max": 6.0}),
    ]


def test_a_metric_that_was_not_measured_is_left_out() -> None:
    course = Course(every=1)
    course.take()
    course.close()
    assert "rare" not in course.rows[0][2]


def test_the_last_row_may_have_fewer_steps() -> None:
    course = Course(every=3)
    course.take(5)
    course.close(epoch=7)
    assert course.rows[-1] == (5, 7, {"loss": pytest.approx(mean(4, 5)), "loss_max": 5.0})


def test_closing_twice_gives_nothing_twice() -> None:
    course = Course(every=3)
    course.take(4)
    course.close()
    course.close()
    assert [step for step, _, _ in course.rows] == [3, 4]


def test_closing_an_empty_course_gives_nothing() -> None:
    course = Course(every=3)
    course.close()
    assert course.rows == []


@pytest.mark.parametrize("flushes", [[1], [2], [3], [4], [1, 2, 3, 4, 5, 6, 7]])
def test_rows_do_not_depend_on_flushes(flushes: list[int]) -> None:
    plain, flushed = Course(every=3), Course(every=3)
    for step in range(1, 8):
        plain.take()
        flushed.take()
        if step in flushes:
            flushed.windows.flush()
    plain.close()
    flushed.close()
    for (step, _, row), (other_step, _, other) in zip(plain.rows, flushed.rows, strict=True):
        assert step == other_step
        assert row == pytest.approx(other, rel=1e-7)


def test_a_flush_gives_out_the_row_that_is_due() -> None:
    course = Course(every=3)
    course.take(4)
    course.windows.flush()
    assert [step for step, _, _ in course.rows] == [3]


def test_an_epochs_metrics_are_means_over_all_its_steps() -> None:
    course = Course(every=3)
    course.take(4)
    assert course.windows.end_epoch() == {"loss": pytest.approx(mean(1, 2, 3, 4))}
    course.take(3, epoch=2)
    assert course.windows.end_epoch() == {"loss": pytest.approx(mean(5, 6, 7))}


def test_a_row_over_an_epochs_end_has_the_steps_of_both_epochs() -> None:
    course = Course(every=3)
    course.take(2)
    course.windows.end_epoch()
    course.take(1, epoch=2)
    course.close(epoch=2)
    assert course.rows == [(3, 2, {"loss": pytest.approx(mean(1, 2, 3)), "loss_max": 3.0})]


def test_an_epoch_without_steps_has_no_metrics() -> None:
    assert Course(every=3).windows.end_epoch() == {}


def test_refused_steps_are_in_no_row() -> None:
    course = Course(every=2)
    course.take(1)
    course.take(1, accept=False)
    course.take(2, accept=False)
    course.take(1)
    course.close()
    assert [(step, row["loss"]) for step, _, row in course.rows] == [(2, 1.0), (5, 5.0)]


def test_a_row_knows_the_steps_refused_up_to_its_last_one() -> None:
    found = []
    course = Course(every=2)
    course.windows._emit = lambda metrics, last, epoch: found.append((last.step, last.skipped))
    course.take(1)
    course.take(1, accept=False)
    course.take(1)
    course.take(1)
    course.take(1, accept=False)
    course.take(1)
    course.close()
    assert found == [(2, 1), (4, 1), (6, 2)]
