"""Does every example that a ``--help`` shows run, as it stands there?"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from experiment_zoo import TINY

from xtrainer.cli.main import build_parser, main

ROOT = Path(__file__).resolve().parents[2]
PARSER, PARSERS = build_parser()
HERE = ("train", "evaluate", "list", "inspect", "diff", "report", "completion")
"""Sub-commands whose examples take seconds at most, in this process."""

TEXT = TINY.replace('"num_epochs": 2', '"num_train_steps": 9, "num_epochs": None')
TEXT = TEXT.replace('"batch_size": 16', '"batch_size": 16, "seed": 0, "nan_at": -1')
TEXT = TEXT.replace("inputs[:48]", "spoilt(inputs[:48], data.nan_at)")
TEXT = TEXT.replace("every_n_steps=3", "every_n_steps=30")
TEXT += """

def spoilt(inputs, row):
    if row >= 0:
        inputs[row] = float("nan")
    return inputs


def run(config):
    loaders = make_loaders(config.data)
    make_trainer(config).train_model(
        *loaders.values(), config.num_epochs, config.num_train_steps, resume=config.resume
    )


if __name__ == "__main__":
    xt.initialize()
    run(xt.parse_config(get_config()))
"""
DIGITS = TEXT.replace('"num_train_steps": 9, "num_epochs": None', '"num_epochs": 2')
DIGITS = DIGITS.replace("config.num_train_steps,", "None,").replace('ze": 16', 'ze": 2')


def examples(command: str) -> list[str]:
    """Returns the examples of a help, without the name of the program."""
    text = PARSERS[command].epilog or ""
    lines = re.search(r"examples:\n((?:  .*\n)+)", text)
    assert lines is not None, command
    joined = re.sub(r"\\\n +", "", lines[1]).splitlines()
    whole = [re.split(r" > | {2,}", line.strip())[0] for line in joined]
    assert all(line.startswith(f"xtrainer {command}") for line in whole)
    return [line.removeprefix("xtrainer ") for line in whole]


ALL = [line for command in PARSERS for line in examples(command)]
SHORT = [line for line in ALL if line.split()[0] in HERE or "--slurm" in line]
LONG = [line for line in ALL if line not in SHORT]


def prepare(folder: Path, lab: Path) -> None:
    """Makes the experiments and the runs that the examples name."""
    (folder / "experiments").mkdir()
    (folder / "experiments" / "byte_lm.py").write_text(TEXT)
    (folder / "experiments" / "digits.py").write_text(DIGITS)
    for name in ("a", "b", "byte_lm"):
        shutil.copytree(lab / "runs" / "tiny", folder / "runs" / name)


@pytest.fixture(scope="module")
def prepared(lab: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    prepare(folder, lab)
    return folder


@pytest.mark.parametrize("line", SHORT)
def test_an_example_runs(
    line: str, prepared: Path, in_lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(prepared)
    assert main(shlex.split(line)) == 0


@pytest.mark.parametrize("line", LONG)
def test_an_example_can_be_parsed(line: str) -> None:
    own = shlex.split(line.split(" -- ")[0])
    options, rest = PARSER.parse_known_args(own)
    assert options.command == own[0]
    assert all(argument.startswith("--config.") for argument in rest)


@pytest.mark.slow
@pytest.mark.parametrize("line", LONG)
def test_an_example_that_takes_longer_runs(line: str, lab: Path, tmp_path: Path) -> None:
    if "--target" in line:
        pytest.importorskip("libtpu", reason="the TPU's compiler is not installed")
    prepare(tmp_path, lab)
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    program = [sys.executable, "-m", "xtrainer"]
    kwargs = {
        "cwd": tmp_path,
        "env": environ,
        "text": True,
        "timeout": 1800,
        "capture_output": True,
    }
    if line.startswith("replay"):  # a run with a step that was refused
        shutil.rmtree(tmp_path / "runs" / "byte_lm")
        nan = [] if "--compare" in line else ["--config.data.nan_at=40"]
        settings = ["--config.trainer.logger.log_path=runs/byte_lm", *nan]
        subprocess.run([*program, "train", "experiments/byte_lm.py", *settings], **kwargs)
        line = line.replace("--step 120", "--step 3") + "".join(f" {one}" for one in nan)
    done = subprocess.run([*program, *shlex.split(line)], **kwargs)
    assert done.returncode == 0, done.stdout + done.stderr
