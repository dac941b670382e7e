"""Does ``xtrainer evaluate`` find the numbers that training has found?"""

import json
import shutil
from pathlib import Path

import pytest
from experiment_zoo import SMALL

import xtrainer as xt
from xtrainer.cli.main import main

RUN = ["evaluate", "runs/tiny", "--experiment", "tiny.py"]


def logged(mode: str, step: int) -> float:
    """Returns what training has logged of a state; the test was one of the best."""
    rows = [row for row in xt.read_metrics("runs/tiny") if row["set"] == mode]
    values = {row["step"]: row["metrics"]["loss"] for row in rows}
    return values[9] if mode == "test" else values[step]


@pytest.mark.parametrize(
    ("mode", "more", "step"),
    [("test", [], 6), ("val", ["--set", "val"], 6), ("val", ["--set", "val", "--checkpoint=9"], 9)],
)
def test_the_numbers_are_those_of_training(
    in_lab: Path, capsys: pytest.CaptureFixture, mode: str, more: list[str], step: int
) -> None:
    assert main([*RUN, *more, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)  # though the experiment prints
    assert found["metrics"] == {"loss": logged(mode, step)}
    assert (found["run"], found["set"], found["step"]) == ("runs/tiny", mode, step)
    assert found["checkpoint"] == str(in_lab / "runs" / "tiny" / "checkpoints" / str(step))


def test_people_read_one_metric_a_line(in_lab: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([*RUN, "--checkpoint", "last", "--set", "val"]) == 0
    assert f"val loss: {logged('val', 9)!r}\n" in capsys.readouterr().out


def test_the_data_are_as_the_run_had_them_unless_told_otherwise(
    in_lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    text = (in_lab / "tiny.py").read_text()
    text = text.replace("def make_loaders(data):", "def make_loaders(data):\n    print(data)")
    (tmp_path / "tiny.py").write_text(text.replace("'batch_size': 16", "'batch_size': 5"))
    shutil.copytree("runs/tiny", tmp_path / "run")
    command = ["evaluate", str(tmp_path / "run"), "--experiment", str(tmp_path / "tiny.py")]
    assert main(command) == 0
    assert "batch_size: 16" in capsys.readouterr().out
    assert main([*command, "--config.data.batch_size=8"]) == 0
    assert "batch_size: 8" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--set", "tset"], "found 'tset', expected a set of make_loaders. Did you mean 'test'?"),
        (["--checkpoint", "first"], "found 'first', expected best, last or a step"),
        (["--checkpoint", "5"], "found no step 5, expected one of"),
        (["--config.data.batchsize=3"], "Did you mean 'data.batch_size'?"),
    ],
)
def test_what_cannot_be_followed_is_told(
    in_lab: Path, capsys: pytest.CaptureFixture, more: list[str], message: str
) -> None:
    assert main([*RUN, *more]) == 2
    assert message in capsys.readouterr().err


def test_a_file_of_another_experiment_is_found_out(
    in_lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    text = (in_lab / "tiny.py").read_text()
    (tmp_path / "other.py").write_text(text.replace("nn.Dense(self.width)", "nn.Dense(9)"))
    assert main(["evaluate", "runs/tiny", "--experiment", str(tmp_path / "other.py")]) == 1
    said = capsys.readouterr().err
    assert "the run was one of 'tiny', and the file is other.py" in said
    assert "other.py the file that the run was started from?" in said


def test_a_file_without_loaders_is_told_what_it_lacks(
    in_lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "bare.py").write_text(SMALL)
    assert main(["evaluate", "runs/tiny", "--experiment", str(tmp_path / "bare.py")]) == 2
    assert "found no function make_loaders(data)" in capsys.readouterr().err
