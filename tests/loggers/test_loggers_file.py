"""Rows survive kills, are valid JSON, and the CSV view agrees with them."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xtrainer.errors import MetricError
from xtrainer.loggers import FileLoggerConfig, read_metrics
from xtrainer.loggers.file import FileLogger

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def logger(tmp_path):
    tool = FileLogger(tmp_path)
    yield tool
    tool.finalize("completed")


def read_csv(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_is_one_json_object_with_set_step_epoch_time(logger, tmp_path):
    logger.log_metrics({"loss_mean": 2.5}, 50, "train", 2)
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    row = json.loads(line)
    assert row.pop("time").endswith("+00:00")
    assert row == {"set": "train", "step": 50, "epoch": 2, "metrics": {"loss_mean": 2.5}}


def test_rows_are_on_disk_before_anything_is_flushed_or_closed(logger, tmp_path):
    for step in (1, 2, 3):
        logger.log_metrics({"loss": step}, step, "train", 1)
        assert len(read_metrics(tmp_path)) == step
        assert len(read_csv(tmp_path / "metrics_train.csv")) == step


@pytest.mark.parametrize("end", ["os._exit(9)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_a_killed_process_keeps_its_rows(end, tmp_path):
    program = f"""
import os, signal, sys
from pathlib import Path
from xtrainer.loggers.file import FileLogger
logger = FileLogger(Path(sys.argv[1]))
for step in range(1, 41):
    logger.log_metrics({{"loss": 1 / step}}, step, "train", 1)
{end}
"""
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=environ, timeout=100)
    assert done.returncode in (9, -signal.SIGKILL)
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == list(range(1, 41))
    assert [float(row["loss"]) for row in read_csv(tmp_path / "metrics_train.csv")] == [
        row["metrics"]["loss"] for row in rows
    ]


def test_nan_and_infinities_are_valid_json_and_come_back(logger, tmp_path):
    values = {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.0}
    logger.log_metrics(values, 1, "train", 1)
    text = (tmp_path / "metrics.jsonl").read_text()

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    row = json.loads(text, parse_constant=refuse)
    assert row["metrics"] == {"a": None, "b": None, "c": None, "d": 1.0}
    assert row["nonfinite"] == {"a": "nan", "b": "inf", "c": "-inf"}
    (back,) = read_metrics(tmp_path)
    assert math.isnan(back["metrics"].pop("a"))
    assert back["metrics"] == {"b": math.inf, "c": -math.inf, "d": 1.0}
    assert "nonfinite" not in back
    assert [float(read_csv(tmp_path / "metrics_train.csv")[0][k]) for k in "bcd"] == [
        math.inf,
        -math.inf,
        1.0,
    ]


def test_a_bad_value_names_its_key_and_writes_nothing(logger, tmp_path):
    with pytest.raises(MetricError, match="'histogram' is an array of shape"):
        logger.log_metrics({"loss": 1.0, "histogram": __import__("numpy").ones(3)}, 1, "train", 1)
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize("mode", ["../x", "a/b", "", ".hidden", "x" * 65])
def test_a_set_that_cannot_name_a_file_is_refused(logger, mode):
    with pytest.raises(MetricError, match="set name"):
        logger.log_metrics({"loss": 1.0}, 1, mode, 1)


def test_each_set_has_its_own_table(logger, tmp_path):
    logger.log_metrics({"loss": 1.0}, 1, "train", 1)
    logger.log_metrics({"loss": 2.0}, 1, "val", 1)
    assert (tmp_path / "metrics_train.csv").read_text() == "step,epoch,loss\n1,1,1.0\n"
    assert (tmp_path / "metrics_val.csv").read_text() == "step,epoch,loss\n1,1,2.0\n"


def test_a_new_metric_widens_the_table_and_keeps_the_rows(logger, tmp_path):
    logger.log_metrics({"b": 1.0}, 1, "train", 1)
    logger.log_metrics({"b": 2.0, "a": 3.0}, 2, "train", 1)
    logger.log_metrics({"a": 4.0}, 3, "train", 1)
    text = (tmp_path / "metrics_train.csv").read_text()
    assert text == "step,epoch,b,a\n1,1,1.0,\n2,1,2.0,3.0\n3,1,,4.0\n"
    assert not list(tmp_path.glob("*.tmp"))


def test_a_second_training_in_the_folder_goes_on(tmp_path):
    for first in (1, 3):
        logger = FileLogger(tmp_path)
        for step in (first, first + 1):
            logger.log_metrics({"loss": 1.0 * step}, step, "train", 1)
        logger.finalize("completed")
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4]
    text = (tmp_path / "metrics_train.csv").read_text()
    assert text == "step,epoch,loss\n1,1,1.0\n2,1,2.0\n3,1,3.0\n4,1,4.0\n"


def test_a_second_training_with_a_new_metric_widens_the_old_table(tmp_path):
    for step, metrics in ((1, {"a": 1.0}), (2, {"b": 2.0})):
        logger = FileLogger(tmp_path)
        logger.log_metrics(metrics, step, "val", 1)
        logger.finalize("completed")
    text = (tmp_path / "metrics_val.csv").read_text()
    assert text == "step,epoch,a,b\n1,1,1.0,\n2,1,,2.0\n"


def test_rows_after_finalize_are_appended(logger, tmp_path):
    logger.log_metrics({"loss": 1.0}, 1, "train", 1)
    logger.finalize("completed")
    logger.finalize("completed")
    logger.log_metrics({"loss": 2.0}, 1, "test", 1)
    assert [row["set"] for row in read_metrics(tmp_path)] == ["train", "test"]


def test_a_torn_last_line_is_passed_over_when_reading(logger, tmp_path):
    logger.log_metrics({"loss": 1.0}, 1, "train", 1)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"set": "train", "st')
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1]


def test_every_cut_of_the_files_is_mended_by_the_next_training(tmp_path):
    source = tmp_path / "source"
    logger = FileLogger(source)
    for step in (1, 2):
        logger.log_metrics({"loss": 0.5}, step, "train", 1)
    logger.finalize("completed")
    rows, table = ((source / name).read_bytes() for name in ("metrics.jsonl", "metrics_train.csv"))
    second_row = rows.index(b"\n") + 1
    for cut in range(second_row, len(rows) + 1):
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / "metrics.jsonl").write_bytes(rows[:cut])
        kept = table[: len(table) - 1 - (cut % 5)]  # the second table row, torn
        (folder / "metrics_train.csv").write_bytes(kept)
        again = FileLogger(folder)
        again.log_metrics({"loss": 0.25}, 3, "train", 1)
        again.finalize("completed")
        expected = [1, 2, 3] if cut >= len(rows) - 1 else [1, 3]
        assert [row["step"] for row in read_metrics(folder)] == expected
        assert [row["step"] for row in read_csv(folder / "metrics_train.csv")] == ["1", "3"]


def test_tables_that_a_kill_left_half_rewritten_are_whole_after_a_resume(tmp_path):
    first = FileLogger(tmp_path)
    for step in (1, 2, 3):
        first.log_metrics({"loss": 1.0 / step}, step, "train", 1)
    state = first.state_dict()
    first.log_metrics({"loss": 0.125}, 4, "train", 1)
    first.finalize("stopped")
    FileLogger(tmp_path).load_state_dict(state, 3)
    table = tmp_path / "metrics_train.csv"
    whole = table.read_bytes()
    for size in range(len(whole)):
        table.write_bytes(whole[:size])
        FileLogger(tmp_path).load_state_dict(state, 3)
        assert table.read_bytes() == whole
    table.unlink()
    FileLogger(tmp_path).load_state_dict(state, 3)
    assert table.read_bytes() == whole


def test_a_broken_line_inside_the_file_is_an_error(logger, tmp_path):
    logger.log_metrics({"loss": 1.0}, 1, "train", 1)
    path = tmp_path / "metrics.jsonl"
    path.write_text("garbage\n" + path.read_text())
    with pytest.raises(MetricError, match=r"line 1: found 'garbage'"):
        read_metrics(path)


def test_the_config_is_written_whole(logger, tmp_path):
    logger.log_config({"seed": 1, "model": {"width": 8}})
    text = (tmp_path / "config.json").read_text()
    assert json.loads(text) == {"seed": 1, "model": {"width": 8}}
    assert '\n  "seed": 1' in text
    logger.log_config({"seed": 2})
    assert json.loads((tmp_path / "config.json").read_text()) == {"seed": 2}
    assert not list(tmp_path.glob("*.tmp"))


def test_a_config_that_is_no_json_leaves_the_old_one(logger, tmp_path):
    logger.log_config({"seed": 1})
    with pytest.raises(TypeError):
        logger.log_config({"seed": object()})
    assert json.loads((tmp_path / "config.json").read_text()) == {"seed": 1}


def test_metrics_called_step_and_epoch_have_columns_of_their_own(logger, tmp_path):
    logger.log_metrics({"step": 7.0, "epoch": 8.0, "metrics.step": 9.0}, 1, "train", 2)
    (row,) = read_csv(tmp_path / "metrics_train.csv")
    assert row == {
        "step": "1",
        "epoch": "2",
        "metrics.step": "7.0",
        "metrics.epoch": "8.0",
        "metrics.metrics.step": "9.0",
    }


def test_tables_are_files_by_name_and_step(logger, tmp_path):
    for step, value in ((2, 1), (4, 2), (4, 3)):  # the newest of a step is kept
        logger.log_table("confusion/val", ["a", "b, c"], [["x", value]], step)
    files = {path.name: path.read_text() for path in (tmp_path / "tables/confusion_val").iterdir()}
    assert files == {
        "00000002.csv": 'a,"b, c"\nx,1\n',
        "00000004.csv": 'a,"b, c"\nx,3\n',
    }


def test_tables_of_steps_that_are_taken_again_are_removed(logger, tmp_path):
    for step in (2, 4, 100_000_000):
        logger.log_table("t", ["a"], [[step]], step)
    other = tmp_path / "tables/t/notes.csv"
    other.write_text("of somebody else")
    FileLogger(tmp_path).load_state_dict({"rows": 0}, 2)
    assert sorted(path.name for path in other.parent.iterdir()) == ["00000002.csv", "notes.csv"]


def test_without_csv_only_the_rows_are_written(tmp_path):
    tool = FileLoggerConfig(csv=False).create(tmp_path)
    tool.log_metrics({"loss": 1.0}, 1, "train", 1)
    tool.finalize("completed")
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


NAMES = st.one_of(
    st.text(max_size=30),
    st.sampled_from(
        ["__proto__", "a,b", 'a"b', "a\nb", "a\rb", "a\\nb", "\ud800", "", "a/b c.d", "é"]
    ),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.dictionaries(NAMES, st.floats(), max_size=5), min_size=1, max_size=5))
def test_any_names_and_values_come_back_from_both_files(batches):
    with tempfile.TemporaryDirectory() as folder:
        for step, metrics in enumerate(batches, start=1):
            logger = FileLogger(Path(folder))  # a new training every row
            logger.log_metrics(metrics, step, "train", 1)
            logger.finalize("completed")
        rows = read_metrics(folder)
        assert [repr(row["metrics"]) for row in rows] == [repr(metrics) for metrics in batches]
        with open(Path(folder) / "metrics_train.csv", encoding="utf-8", newline="") as file:
            header, *table = list(csv.reader(file))
        names = {name for metrics in batches for name in metrics}
        assert len(header) == len(set(header)) == 2 + len(names)
        for line, metrics in zip(table, batches, strict=True):
            cells = sorted(cell for cell in line[2:] if cell)
            assert cells == sorted(repr(value) for value in metrics.values())


@pytest.mark.parametrize(
    "metrics",
    ['{"a": NaN}', '{"a": 1e999}', '{"a": 1.0, "a": 2.0}', "[" * 10**5, '{"a": %s}' % ("9" * 5000)],
)
def test_a_row_that_was_not_written_so_is_refused_by_its_line(tmp_path, metrics):
    row = '{"set": "train", "step": 1, "epoch": 1, "metrics": %s}\n'
    (tmp_path / "metrics.jsonl").write_text(row % '{"loss": 1.0}' + row % metrics)
    with pytest.raises(MetricError, match="metrics.jsonl, line 2: found"):
        read_metrics(tmp_path)
