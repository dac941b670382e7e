"""Do a smaller rate, larger batches and an early end come where they would without a kill?"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import plateau_job
import probes
import pytest

import xtrainer as xt
from xtrainer.checkpoint import list_steps

TESTS = Path(__file__).resolve().parents[1]
HERE = Path(__file__).resolve().parent
RATE = 0.01
SIZES = [4] * 8 + [8] * 8 + [16] * 6
"""The batch sizes of all steps: asked for with steps 8 and 14, the second with its next pass."""
REDUCED = [6, 12, 18]
"""The steps with which the rate is halved: each with two evaluations that count."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Gives what runs the job in this process, compiled once."""
    trainer = plateau_job.make_trainer(tmp_path_factory.mktemp("compiled"))
    repeatable = probes.Repeatable(trainer)

    def begin(folder: Path) -> dict[str, Any]:
        rhythm = {"check_val_every_n_steps": 2, "check_val_every_n_epoch": -1}
        trainer = repeatable.begin(folder=folder, **rhythm)
        trainer.init_callbacks(plateau_job.configs())
        plateau_job.train(trainer)
        return plateau_job.outcome(trainer, folder)

    return begin


@pytest.fixture(scope="module")
def unbroken(run: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The outcome of the run that nothing befalls."""
    return run(tmp_path_factory.mktemp("unbroken"))


def killed(folder: Path, plan: str) -> int:
    """Runs the job in a process of its own, which dies as planned; returns its newest step."""
    path = os.pathsep.join(map(str, (TESTS.parent, TESTS, HERE)))
    command = [sys.executable, HERE / "plateau_job.py", folder, plan]
    environment = {**os.environ, "PYTHONPATH": path}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert ended.returncode == -9, ended.stderr[-3000:]
    return max(list_steps(folder / "checkpoints"))


def test_all_three_act_where_their_patience_ends(unbroken: Any) -> None:
    rows = [row for row in unbroken["rows"] if row["set"] == "train"]
    assert [row["step"] for row in rows] == list(range(1, len(SIZES) + 1))
    expected = [
        RATE * 0.5 ** sum(step > last for last in REDUCED) * (size / 4) ** 0.5
        for step, size in enumerate(SIZES, start=1)
    ]
    assert [row["metrics"]["learning_rate"] for row in rows] == pytest.approx(expected, rel=1e-6)
    reason, detail = unbroken["stop"]
    assert reason is xt.StopReason.REQUESTED
    assert detail.startswith("EarlyStopping: 'loss' has not improved for 10 evaluations")
    assert unbroken["progress"]["step"] == len(SIZES) == 22
    # Each pass was read to its end, in batches of its own size.
    assert unbroken["progress"]["examples"] == sum(SIZES)


def compare(folder: Path, plan: str, run: Any, unbroken: Any) -> int:
    """Kills the job as planned and lets it go on; returns the step that it went on from."""
    step = killed(folder, plan)
    found = run(folder)
    for name, value in unbroken.items():
        assert found[name] == value, name
    return step


def test_a_run_that_is_killed_acts_as_one_that_is_not(
    run: Any, unbroken: Any, tmp_path: Path
) -> None:
    # Behind two reductions, in a pass of larger batches, while still larger ones are waited for.
    assert compare(tmp_path, "step:15", run, unbroken) == 14


@pytest.mark.slow
@pytest.mark.parametrize(
    "plan", ["step:7", "step:9", "step:13", "step:17", "step:21", "arrays:3", "record:5", "meta:8"]
)
def test_a_run_that_is_killed_anywhere_acts_as_one_that_is_not(
    plan: str, run: Any, unbroken: Any, tmp_path: Path
) -> None:
    compare(tmp_path, plan, run, unbroken)
