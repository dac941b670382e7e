"""Does ``xtrainer report`` write a report, print its figures, and say what it cannot read?"""

import json
from pathlib import Path

import pytest

from xtrainer.cli import main
from xtrainer.report import page

ROW = '{"set": "val", "step": 3, "epoch": 1, "time": "", "metrics": {"loss": 0.5}}\n'


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run with one row; plotly.js is left out of what is written of it."""
    monkeypatch.setattr(page, "plotly_js", lambda: "")
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text(ROW)
    return folder


def test_a_report_is_written_and_what_it_lacks_is_said(
    run: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["report", str(run)]) == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"{run / 'report.html'} (")
    assert "no journal: There is no journal of this run." in said.err
    assert "val" in (run / "report.html").read_text()


def test_several_runs_are_compared_in_the_file_that_is_named(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "b"
    other.mkdir()
    (other / "metrics.jsonl").write_text(ROW)
    output = tmp_path / "ab.html"
    assert main(["report", str(run), str(other), "--output", str(output)]) == 0
    assert "2 runs compared" in output.read_text()


def test_the_figures_are_printed_as_json(run: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["report", str(run), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out).values()
    assert (found["status"], found["steps"]) == ("not known", 3)
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nowhere"], 1, "nowhere: found no folder"),
        (["."] * 9, 1, "nothing of a run"),
        ([], 2, "required: RUN"),
        (["a", "--config.x=1"], 2, "it takes no settings"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    arguments: list[str],
    code: int,
    said: str,
    run: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(run.parent)
    assert main(["report", *arguments]) == code
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error


def test_the_help_has_examples_and_exit_codes(capsys: pytest.CaptureFixture) -> None:
    assert main(["report", "--help"]) == 0
    text = capsys.readouterr().out
    assert "xtrainer report runs/a runs/b" in text
    assert "exit codes:" in text
