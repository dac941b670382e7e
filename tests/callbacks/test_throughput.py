"""Are the rates of a row those of its own steps, and of training alone?"""

from collections import deque
from typing import Any

import probes
import pytest
import zoo

import xtrainer as xt
from xtrainer.callbacks import Throughput
from xtrainer.errors import ConfigError

ROWS, FLOPS = 4, 1e6


class Course:
    """A run as the callback sees it, on a clock of its own; the device is the slower part.

    Args:
        config: Of the callback.
        every: Steps per row.
        limit: Steps in flight.
    """

    def __init__(self, config: xt.ThroughputConfig | None = None, every: int = 10, limit: int = 2):
        self.now, self.every, self.limit = 100.0, every, limit
        self.free_at = 0.0
        self.counted = 0
        self.progress = xt.Progress()
        self.mesh = zoo.devices(2)
        self.waiting: deque[tuple[float, int]] = deque()
        self.ends: dict[int, float] = {}
        self.pending: int | None = None
        self.rows: dict[int, dict[str, float]] = {}
        trainer: Any = self
        config = config or xt.ThroughputConfig()
        self.callback = Throughput(config, trainer, clock=lambda: self.now)
        self.callback.on_training_start()
        self.begin_epoch()

    def step_flops(self) -> float:
        self.counted += 1
        return FLOPS

    def begin_epoch(self) -> None:
        self.callback.on_training_epoch_start(1)

    def steps(self, count: int, seconds: float = 0.5, rows: int = ROWS) -> "Course":
        """Dispatches steps as the loop does, and reads rows one window late."""
        progress = self.progress
        for _ in range(count):
            progress.step += 1
            progress.step_in_epoch += 1
            progress.batch_rows = max(progress.batch_rows, rows)
            self.free_at = max(self.free_at, self.now) + seconds
            self.ends[progress.step] = self.free_at
            self.waiting.append((self.free_at, rows))
            self.read(self.limit)
            if progress.step % self.every == 0:
                self.flush()
                self.pending = progress.step
        return self

    def read(self, limit: int) -> None:
        while len(self.waiting) > limit:
            end, rows = self.waiting.popleft()
            self.now = max(self.now, end)
            self.progress.examples += rows

    def flush(self) -> None:
        if self.pending is not None:
            self.now = max(self.now, self.ends[self.pending])
            row = self.rows[self.pending] = {"loss": 1.0}
            self.callback.on_training_log(row, self.pending)
            self.pending = None

    def validate(self, seconds: float) -> "Course":
        self.read(0)
        self.flush()
        self.callback.on_validation_epoch_start(1, self.progress.step)
        self.now += seconds
        self.callback.on_validation_epoch_end({}, 1, self.progress.step)
        return self

    def end_epoch(self, seconds: float, validation_s: float = 0.0) -> "Course":
        self.read(0)
        self.progress.epochs_done, self.progress.step_in_epoch = 1, 0
        self.flush()
        self.callback.on_training_epoch_end({}, 1)
        self.now += seconds
        if validation_s:
            self.validate(validation_s)
        self.now += seconds  # checkpoints, say
        self.begin_epoch()
        return self

    def paces(self) -> dict[int, float | None]:
        return {step: row.get("steps_per_s") for step, row in self.rows.items()}


def test_rates_are_those_of_the_device_and_not_of_the_compilation() -> None:
    course = Course()
    course.steps(1, seconds=30.0).steps(49)
    assert course.paces() == {10: None, 20: pytest.approx(2), 30: pytest.approx(2), 40: 2}


def test_a_row_gets_the_time_of_its_own_steps() -> None:
    course = Course(every=100)
    for seconds in (0.5, 0.5, 2.0, 0.5, 1.0, 0.5):
        course.steps(100, seconds)
    # Two steps are in flight when the clock is read; their time is shared with their neighbours.
    found = [course.paces()[step] for step in (300, 400, 500)]
    assert found == pytest.approx([1 / 2.0, 1 / 0.5, 1 / 1.0], rel=0.1)
    assert found != pytest.approx([1 / 0.5, 1 / 1.0, 1 / 0.5], rel=0.4)  # one window late


@pytest.mark.parametrize("every", [1, 2, 3, 10])
@pytest.mark.parametrize("limit", [1, 2, 4])
def test_validations_and_what_happens_between_epochs_is_left_out(every: int, limit: int) -> None:
    course = Course(every=every, limit=limit)
    course.steps(25).validate(40.0).steps(25).validate(15.0).steps(10)
    course.end_epoch(7.0, validation_s=9.0).steps(33).end_epoch(5.0).steps(20)
    late = {step: pace for step, pace in course.paces().items() if step > 2 * every}
    assert len(late) >= 8
    assert late == {step: pytest.approx(2.0) for step in late}


def test_what_later_callbacks_do_at_a_validation_within_an_epoch_counts() -> None:
    course = Course().steps(30)
    course.validate(3.0)
    course.now += 5.0  # of a callback that is listed later
    course.steps(20).validate(1.0)
    assert course.paces()[40] == pytest.approx(18 / (18 * 0.5 + 5.0))  # two are in flight


def test_waiting_for_data_counts() -> None:
    course = Course()
    for _ in range(50):
        course.steps(1, seconds=0.1)
        course.now += 0.9
    assert course.paces()[40] == pytest.approx(1 / 0.9)


def test_padding_is_no_example() -> None:
    course = Course().steps(40)
    course.steps(9).steps(1, rows=2).end_epoch(1.0)
    assert course.rows[40]["examples_per_s"] == pytest.approx(2 * ROWS)
    assert course.rows[50]["steps_per_s"] == pytest.approx(2.0, rel=0.05)
    assert course.rows[50]["examples_per_s"] == pytest.approx(2 * 3.8, rel=0.05)


def test_all_rates_follow_from_the_examples() -> None:
    config = xt.ThroughputConfig(tokens_per_example=16, peak_flops_per_device=2e6)
    row = Course(config).steps(50).rows[30]
    assert row == pytest.approx(
        {
            "loss": 1.0,
            "steps_per_s": 2.0,
            "examples_per_s": 8.0,
            "tokens_per_s": 128.0,
            "flops_per_s": 2 * FLOPS,
            "mfu": 2 * FLOPS / (2 * 2e6),  # two devices
        }
    )


def test_where_the_peak_is_not_known_there_is_no_share_of_it() -> None:
    row = Course().steps(50).rows[30]
    assert row.keys() == {"loss", "steps_per_s", "examples_per_s", "flops_per_s"}


def test_the_operations_of_a_step_are_counted_once_or_given() -> None:
    course = Course().steps(9)
    assert course.counted == 0
    course.steps(90)
    assert course.counted == 1
    course = Course(xt.ThroughputConfig(flops_per_step=3e6)).steps(50)
    assert course.counted == 0
    assert course.rows[30]["flops_per_s"] == pytest.approx(2 * 3e6)


def test_a_second_run_begins_anew() -> None:
    course = Course().steps(50)
    course.read(0)
    course.flush()
    course.now += 1000.0
    course.rows.clear()
    course.callback.on_training_start()
    course.steps(50)
    assert course.paces() == {60: None, 70: 2, 80: 2, 90: 2}


def test_numbers_that_cannot_be_are_refused() -> None:
    config = xt.ThroughputConfig(tokens_per_example=0, flops_per_step=-1.0)
    with pytest.raises(ConfigError, match="tokens_per_example: found 0, expected a number > 0"):
        xt.check_configs(throughput=config)
    assert len(config.problems()) == 2


def test_a_step_costs_nothing(stage: probes.Repeatable) -> None:
    assert Throughput(xt.ThroughputConfig(), stage.begin()).step_interval() is None


def test_a_run_logs_its_rates(stage: probes.Repeatable) -> None:
    config = xt.ThroughputConfig(peak_flops_per_device=1e12)
    trainer = stage.begin(config, every=4, check_val_every_n_steps=10)
    trainer.train_model(probes.numbered(12), probes.numbered(2, first=100), num_epochs=3)
    rows = dict(trainer.logger.rows())
    assert list(rows) == [4, 8, 12, 16, 20, 24, 28, 32, 36]
    assert not {"steps_per_s", "mfu"} & rows[4].keys()
    for step in range(16, 37, 4):
        row = rows[step]
        assert row["steps_per_s"] > 0
        assert row["examples_per_s"] == pytest.approx(row["steps_per_s"] * probes.ROWS)
        per_example = row["flops_per_s"] / row["examples_per_s"]
        assert per_example == pytest.approx(trainer.step_flops() / probes.ROWS)
        assert row["mfu"] == pytest.approx(row["flops_per_s"] / 1e12)
