"""Does the command line lead to the sub-command, or say what is wrong with it?"""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from experiment_zoo import write_experiment

from xtrainer.cli import list_runs
from xtrainer.cli.main import build_parser, main

ROOT = Path(__file__).parents[2]


COMMANDS = list(build_parser(())[1])


def test_the_help_names_every_sub_command(capsys: pytest.CaptureFixture) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    for name in COMMANDS:
        assert re.search(rf"^ +{name} +\w", said, re.M), name
    assert "exit codes: 0 all is well" in said


@pytest.mark.parametrize("name", COMMANDS)
def test_a_help_is_one_screen_with_an_example_and_the_exit_codes(
    name: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert main([name, "--help"]) == 0
    said = capsys.readouterr().out
    assert len(said.splitlines()) <= 40
    assert f"examples:\n  xtrainer {name} " in said
    assert "exit codes: " in said.replace("\n", " ")


def test_a_help_fits_a_narrow_terminal(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["train", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) < 80 for line in lines if not line.startswith("  xtrainer"))


def test_nothing_asked_for_shows_the_help_and_is_an_error(capsys: pytest.CaptureFixture) -> None:
    assert main([]) == 2
    assert "usage: xtrainer" in capsys.readouterr().out


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture) -> None:
    assert main(["--version"]) == 0
    assert re.fullmatch(r"xtrainer [\d.]+\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["plna"], "found 'plna', which is no command. Did you mean 'plan'?"),
        (["--version=3"], "ignored explicit argument"),
        (["plan"], "required: experiment"),
        (["plan", "x.py", "--device", "8"], "found '--device', which is no option of plan"),
        (["plan", "x.py", "--device", "8"], "Did you mean '--devices'?"),
        (["plan", "x.py", "--config.a", "8"], "given as --config.PATH=VALUE"),
        (["list", "--srot"], "no option of list. Did you mean '--sort'?"),
        (["inspect", "x", "--config.a=1"], "it takes no settings of an experiment"),
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


def test_an_interrupt_shows_no_traceback(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(list_runs, "find_runs", interrupted)
    assert main(["list", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "xtrainer: interrupted\n"


def run_python(*command: str, **kwargs: Any) -> subprocess.CompletedProcess:
    """Runs Python with this tree in front, and without JAX's settings of the tests."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    for name in ("COLUMNS", "PYTHONUNBUFFERED"):  # argparse itself passes over closed pipes
        environ.pop(name, None)
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environ, text=True, timeout=120, **kwargs
    )


def test_the_help_imports_neither_jax_nor_numpy() -> None:
    code = "import sys; from xtrainer.cli.main import main; main(['--help']); main([]); "
    code += "print([name for name in ('jax', 'numpy', 'flax', 'rich') if name in sys.modules])"
    assert run_python("-c", code, capture_output=True).stdout.splitlines()[-1] == "[]"


def test_nobody_reading_the_output_shows_no_traceback() -> None:
    read, write = os.pipe()
    os.close(read)
    done = run_python("-m", "xtrainer", "--help", stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_the_command_is_installed_with_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"xtrainer": "xtrainer.cli.main:main"}


def test_it_runs_as_a_module(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "xtrainer", "plan", write_experiment(tmp_path, "")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "found no function get_config and no make_trainer. Add get_config()" in done.stderr


def test_looking_at_runs_starts_no_device(lab: Path) -> None:
    run = str(lab / "runs" / "tiny")
    code = f"""
from xtrainer.cli.main import main
codes = [main(["list", {run!r}]), main(["inspect", {run!r}]), main(["diff", {run!r}, {run!r}])]
from jax._src import xla_bridge
print(codes, xla_bridge.backends_are_initialized())
"""
    done = run_python("-c", code, capture_output=True)
    assert done.stdout.splitlines()[-1:] == ["[0, 0, 0] False"], done.stderr
