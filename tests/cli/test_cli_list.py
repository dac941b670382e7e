"""Does ``xtrainer list`` say how each run stands?"""

import json
import re
import shutil
from pathlib import Path

import pytest

from xtrainer.cli.main import main
from xtrainer.launch.folder_lock import LOCK_FILE, FolderLock


@pytest.fixture
def runs(lab: Path, tmp_path: Path) -> Path:
    """Gives a folder with three runs of one name, deep and shallow, and things that are no runs."""
    for name in ("a", "b", "deep/c"):
        shutil.copytree(lab / "runs" / "tiny", tmp_path / name)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "metrics.txt").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    return tmp_path


def listed(folder: Path, capsys: pytest.CaptureFixture, *more: str) -> list[dict]:
    assert main(["list", str(folder), "--json", *more]) == 0
    return json.loads(capsys.readouterr().out)["runs"]


def end_journal(run: Path, **stop: object) -> None:
    """Changes the last line of a journal, or takes it off."""
    path = run / "journal.jsonl"
    *lines, last = path.read_text().splitlines()
    lines += [json.dumps({**json.loads(last), **stop})] if stop else []
    path.write_text("\n".join(lines) + "\n")


def test_runs_are_found_at_any_depth_and_links_are_not_followed(
    runs: Path, capsys: pytest.CaptureFixture
) -> None:
    assert [run["name"] for run in listed(runs, capsys)] == ["a", "b", "deep/c"]
    assert [run["name"] for run in listed(runs / "deep" / "c", capsys)] == ["."]


def test_what_a_finished_run_says(runs: Path, capsys: pytest.CaptureFixture) -> None:
    entry = listed(runs, capsys)[0]
    rows = [json.loads(line) for line in (runs / "a" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["metrics"]["loss"] for row in rows if row["set"] == "val"]
    assert entry["best"] == {"metric": "loss", "value": min(losses), "step": 6}
    assert (entry["status"], entry["exit_code"], entry["step"]) == ("finished", 0, 9)
    files = [path for path in (runs / "a").rglob("*") if path.is_file()]
    assert entry["bytes"] == sum(path.stat().st_size for path in files)


@pytest.mark.parametrize(
    ("stop", "status", "reason"),
    [
        ({}, "killed", "It has not come to its end."),
        ({"reason": "FAILED", "detail": "OSError('x')", "exit_code": 1}, "failed", "OSError('x')"),
        ({"reason": "PREEMPTED", "exit_code": 143}, "stopped", "SIGTERM"),
        ({"reason": "NONFINITE", "exit_code": 3}, "stopped", "not finite"),
        ({"reason": "OF_LATER_VERSIONS"}, "finished", "All requested epochs"),
    ],
)
def test_how_a_run_has_ended_is_told_by_its_journal(
    runs: Path, capsys: pytest.CaptureFixture, stop: dict, status: str, reason: str
) -> None:
    end_journal(runs / "a", **stop)
    entry = listed(runs, capsys)[0]
    assert entry["status"] == status
    assert reason in entry["reason"]


def test_a_run_that_is_locked_is_running(runs: Path, capsys: pytest.CaptureFixture) -> None:
    end_journal(runs / "a")
    with FolderLock(runs / "a"):
        assert listed(runs, capsys)[0]["status"] == "running"
        assert "which is this one" in listed(runs, capsys)[0]["reason"]
    assert listed(runs, capsys)[0]["status"] == "killed"


def test_without_a_journal_the_lock_and_the_messages_tell(
    runs: Path, capsys: pytest.CaptureFixture
) -> None:
    for name in ("a", "b", "deep/c"):
        (runs / name / "journal.jsonl").unlink()
    (runs / "a" / LOCK_FILE).write_text("{}")  # which a killed run leaves
    (runs / "deep" / "c" / "output_0.log").unlink()
    states = [run["status"] for run in listed(runs, capsys)]
    assert states == ["killed", "finished", "not known"]


def test_a_damaged_run_is_listed_all_the_same(runs: Path, capsys: pytest.CaptureFixture) -> None:
    (runs / "a" / "journal.jsonl").write_text("{}\n")
    (runs / "a" / "metrics.jsonl").write_text('{"step": []}\nx\n')
    for path in (runs / "a" / "checkpoints").glob("*/meta.json"):
        path.write_text("[")
    entry = listed(runs, capsys)[0]
    assert (entry["status"], entry["step"], entry["best"]) == ("finished", 9, None)


def test_runs_are_sorted_by_any_column(runs: Path, capsys: pytest.CaptureFixture) -> None:
    (runs / "b" / "more").write_bytes(b"x" * 99)
    end_journal(runs / "a")
    names = [run["name"] for run in listed(runs, capsys, "--sort", "size", "--reverse")]
    assert names[0] == "b"
    names = [run["name"] for run in listed(runs, capsys, "--sort", "status")]
    assert names == ["b", "deep/c", "a"]


def test_a_row_is_one_line_where_there_is_no_terminal(
    runs: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = "x" * 120
    (runs / "a").rename(runs / long)
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["list", str(runs)]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert re.search(rf"^{long} +finished +9 +loss 0\.\d+ +20\S+ \d\d:\d\d +\S+ KiB", said, re.M)


def test_a_narrow_terminal_leaves_columns_out(
    runs: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("FORCE_COLOR", "1")  # which makes it a terminal
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(["list", str(runs)]) == 0
    said = capsys.readouterr().out
    assert "best" in said and "changed" not in said
    lines = re.sub(r"\x1b\[\d*m", "", said).splitlines()
    assert max(map(len, lines)) <= 60
    assert "\x1b[3" not in said  # no colours


def test_a_folder_without_runs_is_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["list", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"No run in {str(tmp_path)!r}.\n"
    assert main(["list", str(tmp_path / "gone")]) == 2
    assert "Found no folder" in capsys.readouterr().err
