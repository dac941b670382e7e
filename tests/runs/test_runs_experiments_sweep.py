"""The sweep, shrunk: which task has which settings and folder, and is a stopped one taken up?"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import sweep

import xtrainer as xt

ROOT = Path(__file__).parents[2]
SMALL = [
    "--config.num_epochs=1",
    "--config.model.model_config.channels=(2,)",
    "--config.trainer.enable_progress_bar=False",
]


def config_of(folder: Path, *more: str) -> Any:
    arguments = [*SMALL, f"--config.sweep.folder={folder}", *more]
    return xt.parse_config(sweep.get_config(), arguments)


@pytest.fixture(autouse=True)
def without_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(sweep.TASK_VARIABLE, raising=False)


def test_each_task_has_settings_and_a_folder_of_its_own(tmp_path: Path) -> None:
    configs = [sweep.config_of(config_of(tmp_path), task) for task in range(sweep.NUM_TASKS)]
    tried = [(c.optimizer.scheduler.lr, c.trainer.seed, c.data.seed) for c in configs]
    assert tried == [(lr, seed, seed) for lr in (1e-3, 3e-3, 1e-2) for seed in (0, 1)]
    assert len({c.trainer.logger.log_path for c in configs}) == sweep.NUM_TASKS


def test_a_task_of_an_array_is_the_one_that_slurm_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path)
    assert sweep.tasks_of(config) == list(range(sweep.NUM_TASKS))
    monkeypatch.setenv(sweep.TASK_VARIABLE, "4")
    assert sweep.tasks_of(config) == [4]
    assert sweep.tasks_of(config_of(tmp_path, "--config.sweep.task=2")) == [2]


def test_a_task_that_is_not_in_the_grid_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(xt.ConfigError, match=r"found 6, expected one of the 6 tasks.*--array=0-5"):
        sweep.run(config_of(tmp_path, "--config.sweep.task=6"))
    monkeypatch.setenv(sweep.TASK_VARIABLE, "one")
    with pytest.raises(xt.ConfigError, match="SLURM_ARRAY_TASK_ID: found 'one'"):
        sweep.tasks_of(config_of(tmp_path))


def test_a_task_is_run_and_told_among_those_that_are_not_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = sweep.run(config_of(tmp_path, "--config.sweep.task=3"))
    assert list(done) == [3]
    assert [path.name for path in tmp_path.iterdir()] == ["task_3"]
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("task ")]
    assert lines[2].endswith("test accuracy: not done")
    assert lines[3].endswith(f"lr=0.003 trainer.seed=1 test accuracy: {done[3]!r}")


PROGRAMS = {
    "srun": 'while [ "${1#--}" != "$1" ]; do shift; done; "$@" & echo $! > task; wait $!\n',
    "scancel": '[ "$2" = "$JOB" ] && kill -TERM "$(cat task)"\n',
    "scontrol": 'echo "$@" >> scontrol.log; echo "JobState=RUNNING PreemptTime=None"\n',
    "python": f'exec {sys.executable} "$@"\n',
}


def start(folder: Path, script: Path) -> subprocess.Popen[str]:
    """Runs a batch script as SLURM runs task 1 of the array 77, beside stand-ins for SLURM's."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("XLA_")}
    environ |= {"PATH": f"{folder}/bin:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    environ |= {"JAX_PLATFORMS": "cpu", "JOB": "77_1", "SLURM_JOB_ID": "78"}
    environ |= {"SLURM_ARRAY_JOB_ID": "77", sweep.TASK_VARIABLE: "1"}
    return subprocess.Popen(
        ["bash", script], cwd=folder, env=environ, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.processes
def test_a_task_that_is_told_to_end_is_queued_again_and_taken_up(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for name, text in PROGRAMS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "activate").touch()
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    text = (ROOT / "experiments" / "launch" / "slurm_array.sbatch").read_text()
    more = "--config.num_epochs=60 '--config.model.model_config.channels=(2,)'"
    script = tmp_path / "job"
    script.write_text(text.replace("folder=runs/sweep", f"folder=runs/sweep {more}"))
    first, metrics = start(tmp_path, script), tmp_path / "runs/sweep/task_1/metrics.jsonl"
    end = time.monotonic() + 200
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < end:
        time.sleep(0.1)
    first.send_signal(signal.SIGTERM)
    out, _ = first.communicate(timeout=200)
    assert first.returncode == 143, out
    assert "requeue 77_1" in (tmp_path / "scontrol.log").read_text().splitlines()
    second = start(tmp_path, script)
    out, _ = second.communicate(timeout=300)
    assert second.returncode == 0, out
    begun = re.search(r"starting step\s+(\d+)", out)
    assert begun is not None and int(begun[1]) > 0
    assert re.search(r"task 1: .* test accuracy: 0\.\d+", out)
