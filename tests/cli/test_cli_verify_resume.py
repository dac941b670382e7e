"""Does ``xtrainer verify-resume`` find that a run goes on exactly, and that one does not?"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from experiment_zoo import SMALL, TRAINED, write_experiment

from xtrainer.cli.main import main
from xtrainer.loggers import FileLoggerConfig
from xtrainer.testing import Difference, Journal, choose_kills, compare, read_journal


def test_a_run_that_goes_on_exactly_is_found_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_experiment(tmp_path, TRAINED)
    keep = tmp_path / "runs"
    assert main(["verify-resume", path, "--at", "10", "--keep", str(keep)]) == 0
    said = capsys.readouterr().out
    assert "The same: state after each step and at the end, data, rows" in said
    assert re.findall(r"│ (\d+) +│ (\d+) +│ (\d+) +│", said) == [("10", "8", "2")]
    reference = read_journal(keep / "journal-1.jsonl")
    assert sorted(reference.steps) == list(range(1, 13))
    assert reference.batches.keys() == {(p, n) for p in (0, 1) for n in range(1, 7)}
    assert reference.end.keys() == reference.steps[12].keys()
    last = read_journal(keep / "journal-3.jsonl")
    assert (last.start, sorted(last.steps)) == (8, [9, 10, 11, 12])


def test_a_run_that_reads_other_data_is_found_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_experiment(tmp_path, TRAINED)
    assert main(["verify-resume", path, "--at", "6", "--config.data.random=True"]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "Not the same" in said
    assert "data: batch 1 of pass 1: found" in said
    assert "state: step 1, " in said
    assert "rows: the train row of step 3" in said


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        (SMALL, [], r"found no function run\(config\)"),
        (TRAINED, ["--at", "0"], "expected at least one kill, after a step >= 1"),
        (TRAINED, ["--kills", "0"], "expected at least one kill"),
        (TRAINED, ["--keep", "."], "is not empty"),
    ],
)
def test_what_cannot_be_followed_is_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    text: str,
    arguments: list[str],
    message: str,
) -> None:
    path = write_experiment(tmp_path, text)
    monkeypatch.chdir(tmp_path)
    assert main(["verify-resume", path, *arguments]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_run_that_fails_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_experiment(tmp_path, TRAINED + "\n\ndef run(config):\n    raise OSError('mine')\n")
    assert main(["verify-resume", path]) == 1
    assert "OSError: mine" in capsys.readouterr().err


# The comparison.


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Gives two run folders with the same rows."""
    for name in ("whole", "killed"):
        log(tmp_path / name, 3, loss=0.5)
    return tmp_path / "whole", tmp_path / "killed"


def log(folder: Path, step: int, **metrics: float) -> None:
    tool = FileLoggerConfig().create(folder)
    tool.log_metrics({**metrics, "epoch_time_s": float(step)}, step, "train", 1)
    tool.finalize("completed")


def journal(start: int = 0, last: int = 3, **changes: Any) -> Journal:
    steps = {step: {"w": f"w{step}", "b": f"b{step}"} for step in range(start + 1, last + 1)}
    batches = {(0, step): step for step in steps}
    return Journal(start, steps, {"w": "w"}, batches)


def test_parts_that_agree_have_no_difference(folders: tuple[Path, Path]) -> None:
    assert compare(journal(), [journal(last=2), journal(1)], folders) == []


def test_the_first_leaf_of_the_first_step_is_named(folders: tuple[Path, Path]) -> None:
    part = journal(1)
    part.steps[2]["b"] = part.steps[3]["w"] = "other"
    found = compare(journal(), [journal(last=2), part], folders)
    assert found == [Difference("state", "step 2, b", "other", "b2")]


def test_a_step_that_nobody_has_taken_is_a_difference(folders: tuple[Path, Path]) -> None:
    (found,) = compare(journal(), [journal(last=1), journal(2)], folders)
    assert (found.where, found.found) == ("step 2", "no such step")


def test_end_and_data_are_compared(folders: tuple[Path, Path]) -> None:
    part = journal()
    part.end["w"] = "other"
    part.batches[(0, 2)] = 7
    found = compare(journal(), [part], folders)
    assert [str(difference) for difference in found] == [
        "end: w: found other, expected w",
        "data: batch 2 of pass 1: found 00000007, expected 00000002",
    ]


def test_rows_are_compared_without_what_measures_time(folders: tuple[Path, Path]) -> None:
    log(folders[0], 6, loss=0.25)
    (found,) = compare(journal(), [journal()], folders)
    assert str(found) == (
        "rows: the train row of step 6: found no row, expected train row of step 6"
    )
    log(folders[1], 6, loss=0.125)
    (found,) = compare(journal(), [journal()], folders)
    assert (found.found, found.expected) == ("loss 0.125", "loss 0.25")


def test_a_torn_line_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    lines = [{"kind": "start", "step": 2}, {"kind": "step", "step": 3, "leaves": {"w": "x"}}]
    path.write_text("\n".join(map(json.dumps, lines)) + '\n{"kind": "st')
    assert read_journal(path) == Journal(2, {3: {"w": "x"}})


def test_kills_are_distinct_steps_of_the_run() -> None:
    assert choose_kills(3, 9, seed=1) == [1, 2, 3]
    assert choose_kills(1000, 5, seed=1) != choose_kills(1000, 5, seed=2)
