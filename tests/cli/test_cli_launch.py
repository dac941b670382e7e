"""Does ``xtrainer launch`` start what ``python -m xtrainer.launch`` does, or write it for SLURM?"""

import subprocess
from pathlib import Path

import pytest

from xtrainer.cli.main import main
from xtrainer.launch import SlurmJob, sbatch_script


@pytest.mark.processes
def test_a_script_is_run_with_its_own_arguments(
    capfd: pytest.CaptureFixture, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text("import sys; print(sys.argv[1:]); sys.exit(7)")
    assert main(["launch", "-n", "1", "--", str(script), "--config.x=1", "--", "-n"]) == 7
    assert capfd.readouterr().out == "[0] ['--config.x=1', '--', '-n']\n"


def test_a_batch_script_is_that_of_the_job(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "run.sbatch"
    job = ["nodes=2", "gpus_per_node=8", "tasks_per_node=8", "requeue=false", "setup=module load x"]
    settings = [f"--slurm.{one}" for one in [*job, "setup=cd /data", "environ.A=1 2"]]
    assert main(["launch", "--slurm", str(path), *settings, "--", "train.py", "--config.a=1"]) == 0
    wanted = SlurmJob(
        nodes=2, gpus_per_node=8, tasks_per_node=8, requeue=False,
        setup=("module load x", "cd /data"), environ={"A": "1 2"},
    )  # fmt: skip
    assert path.read_text() == sbatch_script(wanted, ["python", "train.py", "--config.a=1"])
    assert capsys.readouterr().out == f"Wrote {path}. Hand it in with: sbatch {path}\n"
    subprocess.run(["bash", "-n", path], check=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-n", "2"], "found no script"),
        (["--", "a.py"], "required: -n/--num-processes, or --slurm"),
        (["-n", "0", "--", "a.py"], "num_processes: found 0"),
        (["-n", "2", "a.py"], "found 'a.py', which is no option of launch"),
        (["--slurm.nodes=2", "--", "a.py"], "found '--slurm.nodes=2' without --slurm FILE"),
        (["--slurm", "x", "--slurm.node=2", "--", "a.py"], "Did you mean 'nodes'?"),
        (["--slurm", "x", "--slurm.nodes=two", "--", "a.py"], "found 'two', expected a whole"),
        (["--slurm", "x", "--slurm.requeue=maybe", "--", "a.py"], "expected true or false"),
        (["--slurm", "x", "--slurm.environ=A", "--", "a.py"], "--slurm.environ.NAME=VALUE"),
        (["--slurm", "x", "--slurm.nodes=0", "--", "a.py"], "nodes: found 0"),
        (["--slurm", "gone/x", "--", "a.py"], "expected the path of a file in a folder that"),
    ],
)
def test_what_cannot_be_followed_is_told(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["launch", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
