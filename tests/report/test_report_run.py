"""Is a folder read as far as it is whole, and is a damaged part named?"""

import json
from pathlib import Path

import pytest
import report_zoo

from xtrainer.report import ReportError, read_run
from xtrainer.report.summary import summarize


def test_a_whole_folder_is_read(tmp_path: Path) -> None:
    run = read_run(report_zoo.make_run(tmp_path / "a"))
    assert (len(run.rows), len(run.lines), run.name) == (42, 7, "a")
    assert run.config["model"] == {"width": 8}
    assert run.missing == {}


def test_an_older_run_has_no_journal_and_that_is_said(tmp_path: Path) -> None:
    report_zoo.write_rows(tmp_path, report_zoo.ROWS)
    run = read_run(tmp_path)
    assert run.missing.keys() == {"journal", "config"}
    assert summarize(run).status.word == "not known"


def test_a_run_that_was_killed_before_its_first_row_is_a_run(tmp_path: Path) -> None:
    report_zoo.write_journal(tmp_path, report_zoo.KILLED[:1])
    run = read_run(tmp_path)
    assert run.missing.keys() == {"metrics", "config"}
    assert summarize(run).status.word == "ended without a word"


@pytest.mark.parametrize("name", ["metrics.jsonl", "journal.jsonl", "config.json"])
@pytest.mark.parametrize("damage", [b"\x00\xff\n\n", b'{"step": 1}\n{', b"[1]\n[2]\n"])
def test_a_damaged_file_is_left_out_and_named(tmp_path: Path, name: str, damage: bytes) -> None:
    report_zoo.make_run(tmp_path)
    (tmp_path / name).write_bytes(damage)
    (said,) = read_run(tmp_path).missing.values()
    assert name in said and "Traceback" not in said


def test_a_damaged_checkpoint_and_record_are_named(tmp_path: Path) -> None:
    report_zoo.make_run(tmp_path)
    step = tmp_path / "checkpoints" / "10"
    step.mkdir(parents=True)
    (step / "COMMIT.json").write_text("{")
    record = tmp_path / "black_box" / "step_3" / "record.json"
    record.parent.mkdir(parents=True)
    record.write_text("{")
    run = read_run(tmp_path)
    assert run.saved == []
    assert "record.json" in run.missing["refused steps"]


def test_what_is_no_number_in_a_row_is_left_out(tmp_path: Path) -> None:
    row = {"set": "val", "step": 1, "epoch": "one", "time": 3, "metrics": {"a": "x", "b": 2}}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    (found,) = read_run(tmp_path).rows
    assert (found.metrics, found.time, found.epoch) == ({"b": 2.0}, None, 0)


def test_secrets_that_got_into_a_config_are_hidden(tmp_path: Path) -> None:
    report_zoo.make_run(tmp_path, {"trainer": {"api_key": "hunter2"}})
    assert read_run(tmp_path).config == {"trainer": {"api_key": "***"}}


@pytest.mark.parametrize(
    ("name", "text"), [("nothing", "no folder"), ("file", "a file"), ("empty", "nothing of a run")]
)
def test_what_is_no_run_is_an_error(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ReportError, match=text):
        read_run(tmp_path / name)
