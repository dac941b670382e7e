"""Do logs go back with a run that goes back? Rows after a checkpoint are retired, not repeated."""

import json
from pathlib import Path
from typing import Any

import pytest

from xtrainer.loggers import FileLoggerConfig, LoggerTool, MultiLogger, read_metrics
from xtrainer.loggers.buffer import RowBuffer
from xtrainer.loggers.file import SUPERSEDED_FILE, FileLogger, retire_rows
from xtrainer.loggers.tensorboard import TensorBoardLogger


def log(tool: LoggerTool, *steps: int, mode: str = "train", **more: float) -> None:
    for step in steps:
        tool.log_metrics({"loss": step / 2, **more}, step, mode, 1)


def steps_in(folder: Path) -> list[int]:
    return [row["step"] for row in read_metrics(folder)]


def retired_in(folder: Path) -> list[int]:
    path = folder / SUPERSEDED_FILE
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def csv_steps(folder: Path, mode: str = "train") -> list[int]:
    lines = (folder / f"metrics_{mode}.csv").read_text().splitlines()[1:]
    return [int(line.split(",")[0]) for line in lines]


def begin(folder: Path) -> LoggerTool:
    return FileLoggerConfig().create(folder)


def test_rows_after_the_checkpoint_are_retired(tmp_path: Path) -> None:
    tool = begin(tmp_path)
    log(tool, 1, 2)
    state = tool.state_dict()
    assert state == {"rows": 2}
    log(tool, 3, 4)
    log(tool, 4, mode="val", extra=1.0)
    again = begin(tmp_path)  # the other one was killed
    again.load_state_dict(state, 2)
    log(again, 3, 4, 5)
    again.finalize("completed")
    assert steps_in(tmp_path) == [1, 2, 3, 4, 5]
    assert retired_in(tmp_path) == [3, 4, 4]
    assert csv_steps(tmp_path) == [1, 2, 3, 4, 5]
    assert not (tmp_path / "metrics_val.csv").exists()


def test_a_row_of_the_checkpoints_own_step_that_came_later_is_retired(tmp_path: Path) -> None:
    tool = begin(tmp_path)
    log(tool, 1, 2)
    state = tool.state_dict()
    log(tool, 2, mode="val")
    tool.load_state_dict(state, 2)
    log(tool, 2, mode="val")
    assert steps_in(tmp_path) == [1, 2, 2]
    assert retired_in(tmp_path) == [2]


def test_where_nothing_came_later_nothing_is_touched(tmp_path: Path) -> None:
    tool = begin(tmp_path)
    log(tool, 1, 2)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    tool.load_state_dict(tool.state_dict(), 2)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert not (tmp_path / SUPERSEDED_FILE).exists()
    begin(tmp_path / "new").load_state_dict({"rows": 2}, 2)
    assert not (tmp_path / "new").exists()


def test_a_torn_row_is_no_row(tmp_path: Path) -> None:
    tool = begin(tmp_path)
    log(tool, 1, 2)
    state = tool.state_dict()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"set": "train", "step": 3, "met')
    again = begin(tmp_path)
    again.load_state_dict(state, 2)
    log(again, 3)
    assert steps_in(tmp_path) == [1, 2, 3]


@pytest.mark.parametrize("state", [{}, {"rows": 4}])
def test_a_file_that_the_checkpoint_does_not_know_is_cut_by_steps(
    tmp_path: Path, state: dict[str, Any]
) -> None:
    tool = begin(tmp_path)
    log(tool, 1, 2, 3, 4)
    tool.load_state_dict(state, 2)
    assert steps_in(tmp_path) == [1, 2]
    assert retired_in(tmp_path) == [3, 4]


def test_what_was_interrupted_is_done_again(tmp_path: Path) -> None:
    tool = begin(tmp_path)
    log(tool, 1, 2, 3)
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    assert retire_rows(path, 1, 1)
    path.write_bytes(whole)  # as if the process had been killed before it was shortened
    assert retire_rows(path, 1, 1)
    assert not retire_rows(path, 1, 1)
    assert steps_in(tmp_path) == [1]
    assert retired_in(tmp_path) == [2, 3, 2, 3]


def test_columns_stay_where_they_were(tmp_path: Path) -> None:
    tool = begin(tmp_path)
    log(tool, 1)
    log(tool, 2, late=1.0)
    state = tool.state_dict()
    log(tool, 3, later=2.0)
    tool.load_state_dict(state, 2)
    lines = (tmp_path / "metrics_train.csv").read_text().splitlines()
    assert lines == ["step,epoch,loss,late", "1,1,0.5,", "2,1,1.0,1.0"]


def test_a_buffer_gives_its_rows_before_they_are_counted(tmp_path: Path) -> None:
    tool = RowBuffer(FileLogger(tmp_path), interval_s=1e9)
    log(tool, 1, 2, 3)
    assert tool.state_dict() == {"rows": 3}
    assert tool.kind == "FileLogger"


def test_several_tools_are_told_apart(tmp_path: Path) -> None:
    logger = MultiLogger([FileLogger(tmp_path / "a"), FileLogger(tmp_path / "b")])
    log(logger, 1)
    log(logger.tools[1], 2)
    state = logger.state_dict()
    assert state == {"FileLogger_0": {"rows": 1}, "FileLogger_1": {"rows": 2}}
    log(logger, 3)
    logger.load_state_dict(state, 2)
    assert (steps_in(tmp_path / "a"), steps_in(tmp_path / "b")) == ([1], [1, 2])


def test_tensorboard_forgets_later_steps(tmp_path: Path) -> None:
    from tensorboardX.proto import event_pb2

    tool = TensorBoardLogger(tmp_path, flush_every_s=0)
    log(tool, 1, 2, 3)
    tool.load_state_dict({}, 2)
    log(tool, 3)
    tool.finalize("completed")
    events: list[Any] = []
    for path in sorted(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            event = event_pb2.Event()  # type: ignore[attr-defined]
            event.ParseFromString(data[12 : 12 + length])
            events.append(event)
            data = data[16 + length :]
    starts = [event for event in events if event.HasField("session_log")]
    assert [event.step for event in starts] == [3]
    scalars = [event.step for event in events if event.HasField("summary")]
    assert scalars == [1, 2, 3, 3]
    assert events.index(starts[0]) < len(events) - 1
