"""Rows of training that come fast are handed on together; no row is lost, late or out of order."""

from pathlib import Path
from typing import Any

import pytest

import xtrainer as xt
from xtrainer.loggers import LoggerTool, NullLogger
from xtrainer.loggers.base import MultiLogger
from xtrainer.loggers.buffer import RowBuffer
from xtrainer.loggers.build import build_loggers


class Notes(LoggerTool):
    """Keeps what it is told, in order."""

    def __init__(self, failing_step: int = -1) -> None:
        self.told: list[Any] = []
        self.failing_step = failing_step

    def open(self) -> None:
        self.told.append("open")

    def log_config(self, config: Any) -> None:
        self.told.append("config")

    def log_metrics(self, metrics: Any, step: int, mode: str, epoch: int) -> None:
        if step == self.failing_step:
            raise OSError("planted")
        self.told.append((mode, step))

    def log_text(self, key: str, text: str, step: int) -> None:
        self.told.append(key)

    def log_model(self, table: str) -> None:
        self.told.append(table)

    def log_image(self, key: str, image: Any, step: int) -> None:
        self.told.append(key)

    def log_histogram(self, key: str, counts: Any, edges: Any, step: int) -> None:
        self.told.append(key)

    def log_table(self, key: str, columns: Any, rows: Any, step: int) -> None:
        self.told.append(key)

    def log_best(self, metrics: Any, step: int) -> None:
        self.told.append("best")

    def flush(self) -> None:
        self.told.append("flush")

    def finalize(self, status: str) -> None:
        self.told.append(status)


def buffer(tool: LoggerTool, *times: float, interval_s: float = 1.0) -> RowBuffer:
    """Returns a buffer whose clock shows a time for each row."""
    clock = iter(times)
    return RowBuffer(tool, interval_s, lambda: next(clock))


def log(logger: LoggerTool, *steps: int, mode: str = "train") -> None:
    for step in steps:
        logger.log_metrics({"loss": 1.0}, step, mode, 1)


def test_a_row_that_comes_alone_is_given_on_at_once() -> None:
    tool = Notes()
    logger = buffer(tool, 0.0, 1.0, 2.5)
    for step in (1, 2, 3):
        log(logger, step)
        assert tool.told[-1] == ("train", step)


def test_rows_that_come_fast_are_given_on_with_the_first_that_is_late_enough() -> None:
    tool = Notes()
    logger = buffer(tool, 0.0, 0.3, 0.9, 1.0, 1.1)
    log(logger, 1, 2, 3)
    assert tool.told == [("train", 1)]
    log(logger, 4, 5)
    assert tool.told == [("train", step) for step in (1, 2, 3, 4)]


def test_an_interval_of_zero_keeps_nothing() -> None:
    tool = Notes()
    logger = buffer(tool, 0.0, 0.0, interval_s=0.0)
    log(logger, 1)
    log(logger, 2)
    assert tool.told == [("train", 1), ("train", 2)]


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda logger: log(logger, 2, mode="val"), ("val", 2)),
        (lambda logger: logger.log_text("table", "", 2), "table"),
        (lambda logger: logger.log_config({}), "config"),
        (lambda logger: logger.log_model("parameters"), "parameters"),
        (lambda logger: logger.log_image("image", None, 2), "image"),
        (lambda logger: logger.log_histogram("histogram", None, None, 2), "histogram"),
        (lambda logger: logger.log_table("table", [], [], 2), "table"),
        (lambda logger: logger.log_best({}, 2), "best"),
        (lambda logger: logger.flush(), "flush"),
        (lambda logger: logger.finalize("stopped"), "stopped"),
    ],
)
def test_what_was_kept_comes_before_anything_else(call: Any, said: Any) -> None:
    tool = Notes()
    logger = buffer(tool, 0.0, 0.1, 0.2)
    log(logger, 0, 1)
    call(logger)
    assert tool.told == [("train", 0), ("train", 1), said]


def test_a_tool_is_closed_even_if_a_kept_row_fails() -> None:
    tool = Notes(failing_step=1)
    logger = buffer(tool, 0.0, 0.1)
    log(logger, 0, 1)
    with pytest.raises(OSError, match="planted"):
        logger.finalize("completed")
    assert tool.told == [("train", 0), "completed"]


def test_of_two_tools_the_failure_of_one_takes_no_row_from_the_other() -> None:
    good, bad = Notes(), Notes(failing_step=1)
    logger = MultiLogger([buffer(bad, 0.0, 0.1), buffer(good, 0.0, 0.1)])
    log(logger, 0, 1)
    with pytest.raises(OSError, match="planted"):
        logger.finalize("failed")
    assert good.told == ["open", ("train", 0), ("train", 1), "failed"]


def test_a_config_sets_the_interval_of_every_tool(tmp_path: Path) -> None:
    config = xt.LoggerConfig(log_path=str(tmp_path), write_interval_s=0.5)
    made = build_loggers(config, is_main=True, process_index=0)
    buffers = [tool for tool in made.tools if isinstance(tool, RowBuffer)]  # type: ignore[attr-defined]
    assert [tool.interval_s for tool in buffers] == [0.5] * len(config.log_tools)
    assert not isinstance(buffers[0].tool, NullLogger)


def test_a_negative_interval_is_refused() -> None:
    problems = xt.LoggerConfig(write_interval_s=-1.0).problems()
    assert problems == ["write_interval_s: found -1.0, expected seconds >= 0."]


def test_after_a_run_every_row_is_on_disk(tmp_path: Path) -> None:
    import probes
    import zoo

    logger = xt.LoggerConfig(log_every_n_steps=1, log_path=str(tmp_path), write_interval_s=1e6)
    made = zoo.make_trainer(
        trainer_class=probes.Traced, batch=probes.one(0), mesh=zoo.devices(1), logger=logger
    )
    made.train_model(probes.numbered(8), num_epochs=2)
    assert [row["step"] for row in xt.read_metrics(tmp_path) if row["set"] == "train"] == list(
        range(1, 17)
    )
