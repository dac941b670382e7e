"""Does the command line lead to the sub-command, or say what is wrong with it?"""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from experiment_zoo import write_experiment

from xtrainer.cli import main

ROOT = Path(__file__).parents[2]


def test_help_shows_the_sub_command_and_its_exit_codes(capsys: pytest.CaptureFixture) -> None:
    assert main(["--help"]) == 0
    assert "plan" in capsys.readouterr().out
    assert main(["plan", "--help"]) == 0
    assert "exit codes: 0 the plan holds" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "required: COMMAND"),
        (["plna"], "invalid choice"),
        (["plan"], "required: experiment"),
        (["plan", "x.py", "--device", "8"], "found '--device', which is no option of plan"),
        (["plan", "x.py", "--devices", "0"], "found '0', expected a whole number >= 1"),
        (["plan", "x.py", "--memory-limit", "16GiX"], "found '16GiX', expected a number"),
        (["plan", "x.py", "--devices", "8", "--target", "v5e:2x4"], "not allowed with"),
        (["plan", "x.py"], "Found no Python file"),
    ],
)
def test_a_command_line_that_cannot_be_followed(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture
) -> None:
    assert main(arguments) == 2
    assert said in capsys.readouterr().err


def test_the_command_is_installed_with_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"xtrainer": "xtrainer.cli.main:main"}


def test_it_runs_as_a_module(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "xtrainer.cli", "plan", write_experiment(tmp_path, "")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "found no function get_config and no make_trainer. Add get_config()" in done.stderr
