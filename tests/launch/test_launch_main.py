"""``python -m xtrainer.launch``: scripts and modules in several processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from xtrainer.launch.__main__ import main

pytestmark = pytest.mark.processes

ROOT = Path(__file__).resolve().parents[2]


def test_the_command_line_runs_a_script_with_its_arguments(capfd, tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import sys; print(sys.argv[1:])")
    assert main(["-n", "1", "--", str(script), "-n", "--", "x"]) == 0
    assert capfd.readouterr().out == "[0] ['-n', '--', 'x']\n"


def test_the_command_line_runs_a_module(capfd):
    assert main(["-n", "1", "--timeout", "60", "--", "-m", "calendar", "2024", "2"]) == 0
    assert "[0]    February 2024\n" in capfd.readouterr().out


def test_the_help_has_an_example(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "-n 2 --devices-per-process 4 -- train.py" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-n", "2"], "found no script"),
        (
            ["-n", "2", "train.py"],
            "found 'train.py', which is no option; the script goes behind --",
        ),
        (["--", "train.py"], "required: -n"),
        (["-n", "0", "--", "train.py"], "num_processes: found 0"),
    ],
)
def test_a_command_line_that_cannot_work_says_why(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_two_processes_of_the_command_line_are_one_run_of_jax(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import jax, xtrainer, logging\n"
        "logging.basicConfig(level='INFO', format='%(name)s: %(message)s')\n"
        "info = xtrainer.initialize()\n"
        "print(info.source, jax.process_index(), jax.process_count(), jax.device_count())\n"
    )
    options = ["-n", "2", "--devices-per-process", "3", "--timeout", "120"]
    result = subprocess.run(
        [sys.executable, "-m", "xtrainer.launch", *options, "--", str(script)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert result.returncode == 0, result.stderr
    assert sorted(result.stdout.splitlines()) == ["[0] environment 0 2 6", "[1] environment 1 2 6"]
    assert "JAX_COORDINATOR_ADDRESS, process 1 of 2, coordinator 127.0.0.1:" in result.stderr
