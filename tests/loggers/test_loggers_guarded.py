"""A tool that fails is tried again, then switched off; rows are kept for a while, and counted."""

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xtrainer.errors import MetricError
from xtrainer.loggers import FileLoggerConfig, LoggerConfig, LoggerTool, read_metrics
from xtrainer.loggers.buffer import RowBuffer
from xtrainer.loggers.build import build_loggers
from xtrainer.loggers.guarded import GuardedTool
from xtrainer.loggers.tensorboard import TensorBoardLogger


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


class Flaky(LoggerTool):
    """A tool that fails in some of its methods while ``broken``; counts how often it was tried."""

    def __init__(self, *methods: str, error: Exception | None = None) -> None:
        self.told: list[Any] = []
        self.methods = methods
        self.error = error or OSError("planted")
        self.broken = False
        self.tried = 0

    def _do(self, name: str, what: Any) -> None:
        self.tried += 1
        if self.broken and (name in self.methods or not self.methods):
            raise self.error
        self.told.append(what)

    def open(self) -> None:
        self._do("open", "open")

    def log_config(self, config: Any) -> None:
        self._do("log_config", "config")

    def log_metrics(self, metrics: Any, step: int, mode: str, epoch: int) -> None:
        self._do("log_metrics", step)

    def log_text(self, key: str, text: str, step: int) -> None:
        self._do("log_text", key)

    def log_model(self, table: str) -> None:
        self._do("log_model", table)

    def log_image(self, key: str, image: Any, step: int) -> None:
        self._do("log_image", (key, step))

    def log_histogram(self, key: str, counts: Any, edges: Any, step: int) -> None:
        self._do("log_histogram", (key, counts, edges, step))

    def log_table(self, key: str, columns: Any, rows: Any, step: int) -> None:
        self._do("log_table", (key, columns, rows, step))

    def log_best(self, metrics: Any, step: int) -> None:
        self._do("log_best", (metrics, step))

    def flush(self) -> None:
        self._do("flush", "flush")

    def state_dict(self) -> dict[str, Any]:
        self._do("state_dict", "state")
        return {"rows": 7}

    def load_state_dict(self, state: Any, step: int) -> None:
        self._do("load_state_dict", f"back to {step}")

    def finalize(self, status: str) -> None:
        self._do("finalize", status)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def opened(tool: LoggerTool, clock: Callable[[], float], retries: int = 5) -> GuardedTool:
    guarded = GuardedTool(tool, retries, clock)
    guarded.open()
    return guarded


def log(logger: LoggerTool, *steps: int) -> None:
    for step in steps:
        logger.log_metrics({"loss": float(step)}, step, "train", 1)


def test_what_comes_while_a_tool_fails_is_given_to_it_later_in_order(clock: Clock) -> None:
    tool = Flaky()
    guarded = opened(tool, clock)
    log(guarded, 1)
    tool.broken = True
    log(guarded, 2)
    guarded.log_text("note", "", 2)
    tool.broken = False
    log(guarded, 3)  # too early to try again
    assert tool.told == ["open", 1]
    clock.now += 1.0
    log(guarded, 4)
    assert tool.told == ["open", 1, 2, "note", 3, 4]
    assert guarded.lost == 0


def test_images_histograms_tables_and_best_values_are_given_later_too(clock: Clock) -> None:
    tool = Flaky()
    guarded = opened(tool, clock)
    tool.broken = True
    guarded.log_model("parameters")
    guarded.log_image("image", np.zeros((1, 1, 1), np.uint8), 2)
    guarded.log_histogram("h", "counts", "edges", 2)  # type: ignore[arg-type]
    guarded.log_table("t", ["a"], [[1]], 2)
    guarded.log_best({"loss": 1.0}, 2)
    assert guarded.state_dict() == {} and tool.told == ["open"]
    tool.broken = False
    clock.now += 1.0
    log(guarded, 3)
    assert tool.told[1:] == [
        "parameters", ("image", 2), ("h", "counts", "edges", 2), ("t", ["a"], [[1]], 2),
        ({"loss": 1.0}, 2), 3,
    ]  # fmt: skip
    assert guarded.lost == 0


def test_few_images_are_kept_and_the_others_counted(clock: Clock) -> None:
    tool = Flaky()
    guarded = opened(tool, clock)
    tool.broken = True
    for step in range(1, 31):
        guarded.log_image("image", np.zeros((1, 1, 1), np.uint8), step)
        log(guarded, step)
    assert guarded.lost == 10
    tool.broken = False
    clock.now += 1.0
    guarded.flush()
    images = [told[1] for told in tool.told if isinstance(told, tuple)]
    assert images == list(range(11, 31))
    assert [told for told in tool.told if isinstance(told, int)] == list(range(1, 31))


def test_the_pauses_double_up_to_a_minute(clock: Clock) -> None:
    tool = Flaky()
    guarded = opened(tool, clock, retries=9)
    tool.broken, start = True, clock.now
    tries = []
    while not guarded.lost:
        before = tool.tried
        log(guarded, 1)
        tries += [clock.now - start] if tool.tried > before else []
        clock.now += 0.5
    pauses = [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert tries == [float(sum(pauses[:count])) for count in range(10)]


def test_a_tool_that_stays_broken_is_switched_off_with_the_number_of_lost_rows(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    tool = Flaky()
    guarded = opened(tool, clock, retries=2)
    tool.broken = True
    with caplog.at_level(logging.WARNING, logger="xtrainer"):
        for step in range(1, 9):
            log(guarded, step)
            clock.now += 1.0
        tried = tool.tried
        log(guarded, 9, 10)
        assert tool.tried == tried
        guarded.finalize("completed")
    messages = [record.getMessage() for record in caplog.records]
    (off,) = [text for text in messages if "switched off" in text]
    assert off == (
        "Flaky has failed 3 times in a row and is switched off; training goes on without it. 4 "
        "rows were lost so far; the last error: OSError: planted"
    )
    assert messages[-1] == "Flaky: 10 rows were lost in all."


def test_the_first_error_has_its_traceback_and_repeats_are_told_once_a_minute(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    tool = Flaky("log_metrics")
    guarded = opened(tool, clock)
    with caplog.at_level(logging.ERROR, logger="xtrainer"):
        for step in range(1, 301):  # fails and works by turns, for five minutes
            tool.broken = step % 2 == 1
            log(guarded, step)
            clock.now += 1.0
    assert caplog.records[0].exc_info is not None
    assert [record.exc_info for record in caplog.records[1:]] == [None] * (len(caplog.records) - 1)
    assert len(caplog.records) == 5
    assert "Flaky has failed again (29 times since it was last told)" in caplog.text
    assert tool.told[1:] == list(range(1, 301))


def test_only_the_newest_rows_are_kept_and_the_others_counted(clock: Clock) -> None:
    tool = Flaky()
    guarded = opened(tool, clock)
    tool.broken = True
    log(guarded, 1)
    guarded.log_config({})
    log(guarded, *range(2, 1011))
    assert guarded.lost == 11
    tool.broken = False
    clock.now += 1.0
    log(guarded, 1011)
    assert guarded.lost == 12
    assert tool.told == ["open", "config", *range(13, 1012)]


def test_what_fails_at_the_start_is_raised(clock: Clock) -> None:
    for method in ("open", "load_state_dict"):
        tool = Flaky(method)
        tool.broken = True
        guarded = GuardedTool(tool, 5, clock)
        with pytest.raises(OSError, match="planted"):
            guarded.load_state_dict({}, 3)
            guarded.open()


def test_opened_again_an_error_is_no_longer_raised(clock: Clock) -> None:
    tool = Flaky("open")
    guarded = opened(tool, clock)
    guarded.finalize("completed")
    tool.broken = True
    guarded.open()
    log(guarded, 1)
    clock.now += 1.0
    log(guarded, 2)
    assert tool.told == ["open", "completed", 1, 2]


def test_a_row_that_no_tool_could_take_is_the_callers_mistake(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    tool = Flaky("log_metrics", error=MetricError("bad name"))
    guarded = opened(tool, clock)
    tool.broken = True
    with pytest.raises(MetricError, match="bad name"):
        log(guarded, 1)
    tool.broken = False
    log(guarded, 2)
    assert tool.told == ["open", 2] and caplog.text == ""


def test_a_bad_row_that_was_kept_is_dropped_and_told(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    tool = Flaky()
    guarded = opened(tool, clock)
    tool.broken = True
    log(guarded, 1)
    tool.error = MetricError("bad name")
    clock.now += 1.0
    log(guarded, 2)
    assert guarded.lost == 2 and "a row was lost. bad name" in caplog.text
    tool.broken = False
    log(guarded, 3)
    assert tool.told == ["open", 3]


@pytest.mark.parametrize("method", [
    "flush", "state_dict", "finalize", "log_config", "log_text", "log_model", "log_image",
    "log_histogram", "log_table", "log_best",
])  # fmt: skip
def test_no_method_ever_raises_once_the_tool_is_open(clock: Clock, method: str) -> None:
    tool = Flaky(method)
    guarded = opened(tool, clock)
    tool.broken = True
    for _ in range(9):
        guarded.log_config({})
        log(guarded, 1)
        guarded.log_text("key", "", 1)
        guarded.log_model("")
        guarded.log_image("key", np.zeros((1, 1, 1), np.uint8), 1)
        guarded.log_histogram("key", np.ones(1), np.ones(2), 1)
        guarded.log_table("key", [], [], 1)
        guarded.log_best({}, 1)
        guarded.flush()
        assert guarded.state_dict().keys() <= {"rows", "late_rows"}
        clock.now += 60.0
    guarded.load_state_dict({}, 1)
    guarded.finalize("failed")


def test_rows_do_not_wait_for_a_config_that_cannot_be_kept(clock: Clock) -> None:
    tool = Flaky("log_config")
    guarded = opened(tool, clock)
    tool.broken = True
    guarded.log_config({})
    guarded.log_config({})  # kept, as all that comes before the next try
    log(guarded, 1)
    for step in (2, 3):
        clock.now += 2.0
        log(guarded, step)
    assert tool.told == ["open", 1, 2, 3] and guarded.lost == 0


def test_an_interrupt_is_passed_on(clock: Clock) -> None:
    tool = Flaky(error=KeyboardInterrupt())  # type: ignore[arg-type]
    guarded = opened(tool, clock)
    tool.broken = True
    with pytest.raises(KeyboardInterrupt):
        log(guarded, 1)


def test_a_checkpoint_while_a_tool_fails_says_how_many_rows_may_come_late(clock: Clock) -> None:
    tool = Flaky("log_metrics")
    guarded = opened(tool, clock)
    assert guarded.state_dict() == {"rows": 7}
    tool.broken = True
    log(guarded, 8, 9)
    guarded.flush()  # not a try of its own: the pause is not over
    assert guarded.state_dict() == {"rows": 7, "late_rows": 2}
    assert tool.told[-1] == "state"


def test_a_tool_that_was_switched_off_gets_another_chance_after_it_was_closed(clock: Clock) -> None:
    tool = Flaky("log_metrics")
    guarded = opened(tool, clock, retries=0)
    tool.broken = True
    log(guarded, 1)
    assert guarded.lost == 1
    guarded.finalize("completed")
    tool.broken = False
    guarded.open()
    log(guarded, 2)
    assert tool.told == ["open", "completed", "open", 2]


# With the tools that write files.


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Lets a limit of the size of files come and go."""
    import zoo

    limits: list[Any] = []

    def fill(is_full: bool) -> None:
        if is_full:
            limits.append(zoo.full_disk(0))
            limits[-1].__enter__()
        else:
            limits.pop().__exit__(None, None, None)

    return fill


def test_a_file_has_every_row_once_after_a_disk_was_full(
    tmp_path: Path, clock: Clock, full: Callable[[bool], None]
) -> None:
    guarded = opened(FileLoggerConfig().create(tmp_path), clock)
    log(guarded, 1)
    full(True)
    for step in (2, 3, 4):
        log(guarded, step)
        clock.now += 2.0
    state = guarded.state_dict()
    full(False)
    guarded.log_metrics({"other": 5.0}, 5, "train", 1)
    clock.now += 4.0
    log(guarded, 6)
    guarded.finalize("completed")
    assert state == {"rows": 1, "late_rows": 3}
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4, 5, 6]
    table = (tmp_path / "metrics_train.csv").read_text().splitlines()
    assert table == ["step,epoch,loss,other", *(f"{i},1,{i}.0," for i in (1, 2, 3, 4)), "5,1,,5.0",
                     "6,1,6.0,"]  # fmt: skip
    again = FileLoggerConfig().create(tmp_path)
    again.load_state_dict(state, 4)  # a row that came late is a row before the checkpoint
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4]


def test_a_row_that_fits_one_file_only_is_in_neither(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    import zoo

    tool = FileLoggerConfig().create(tmp_path)
    log(tool, 1)
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    (tmp_path / "metrics_train.csv").write_text("step,epoch,loss\n" + "0,0,0.0\n" * 4000)
    again = FileLoggerConfig().create(tmp_path)
    with zoo.full_disk(2**13), pytest.raises(OSError):
        log(again, 2)  # there is room for the row, and none in the table
    assert (tmp_path / "metrics.jsonl").stat().st_size == sizes["metrics.jsonl"]
    log(again, 2)
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]
    assert (tmp_path / "metrics_train.csv").read_text().endswith("0,0,0.0\n2,1,2.0\n")


def test_event_files_have_every_row_after_a_disk_was_full(
    tmp_path: Path, clock: Clock, full: Callable[[bool], None]
) -> None:
    from test_loggers_tensorboard import scalars

    tool = TensorBoardLogger(tmp_path, flush_every_s=0)
    guarded = opened(tool, clock)
    log(guarded, 1)
    tool.flush_every_s = 1000
    log(guarded, 2)  # in the buffer of a file that will fail
    tool.flush_every_s = 0
    full(True)
    log(guarded, 3)
    clock.now += 1.0
    log(guarded, 4)
    full(False)
    clock.now += 2.0
    log(guarded, 5)
    guarded.finalize("completed")
    found = [(step, value) for tag, step, value in scalars(tmp_path) if tag == "train/loss"]
    assert sorted(set(found)) == [(step, float(step)) for step in range(1, 6)]
    assert guarded.lost == 0


def test_the_config_decides_what_an_error_does(tmp_path: Path) -> None:
    def tools(**config: Any) -> list[LoggerTool]:
        made = LoggerConfig(log_path=str(tmp_path), tool_retries=3, **config)
        return list(build_loggers(made, is_main=True, process_index=0).tools)  # type: ignore[attr-defined]

    inner = [tool.tool if isinstance(tool, RowBuffer) else tool for tool in tools()]
    assert [type(tool) for tool in inner] == [GuardedTool] * 4
    assert {tool.retries for tool in inner if isinstance(tool, GuardedTool)} == {3}
    inner = [tool.tool if isinstance(tool, RowBuffer) else tool for tool in
             tools(on_tool_error="raise")]  # fmt: skip
    assert GuardedTool not in [type(tool) for tool in inner]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"on_tool_error": "ignore"}, "on_tool_error: found 'ignore', expected 'disable' or 'rai"),
        ({"tool_retries": -1}, "tool_retries: found -1, expected a number >= 0"),
    ],
)
def test_settings_that_cannot_be_are_reported(fields: dict[str, Any], message: str) -> None:
    (problem,) = LoggerConfig(**fields).problems()
    assert message in problem


def test_a_guard_changes_nothing_of_a_row(clock: Clock) -> None:
    seen: list[Any] = []

    class Seeing(LoggerTool):
        def log_metrics(self, *args: Any) -> None:
            seen.append(args)

    guarded = opened(Seeing(), clock)
    row = {"a": math.inf}
    guarded.log_metrics(row, 3, "val", 2)
    assert seen == [(row, 3, "val", 2)] and seen[0][0] is row
