"""Batch scripts: what they ask for, and what they do beside stand-ins for SLURM's programs."""

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from xtrainer.errors import ConfigError
from xtrainer.launch.slurm import SlurmJob, sbatch_script, write_sbatch

ROOT = Path(__file__).resolve().parents[2]
JOB = "77"

# ``srun`` starts its tasks on this machine with the variables that SLURM sets.
SRUN = """
import os, subprocess, sys
command = sys.argv[1:]
while command[0].startswith("--"):
    command.pop(0)
count, tasks = int(os.environ["TASKS"]), []
for index in range(count):
    own = {"SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": count,
           "SLURM_STEP_NUM_TASKS": count, "SLURM_PROCID": index, "SLURM_LOCALID": index}
    environ = os.environ | {name: str(value) for name, value in own.items()}
    tasks.append(subprocess.Popen(command, env=environ))
with open("tasks", "w") as file:
    file.write(" ".join(str(task.pid) for task in tasks))
sys.exit(max(task.wait() for task in tasks))
"""
SCANCEL = """
import os, signal, sys
assert sys.argv[1:] == ["--signal=TERM", os.environ["JOB"]], sys.argv
for task in open("tasks").read().split():
    os.kill(int(task), signal.SIGTERM)
"""
SCONTROL = """
import os, sys
open("scontrol", "a").write(" ".join(sys.argv[1:]) + "\\n")
if sys.argv[1] == "show":
    print("   JobState=" + os.environ["STATE"], "Reason=None")
    print("   PreemptEligibleTime=2026-01-01T00:00:00 PreemptTime=" + os.environ["PREEMPTED"])
"""


def options_of(script: str) -> dict[str, str]:
    """Returns the options of sbatch in a script, with the quotes taken away."""
    lines = [line.removeprefix("#SBATCH ") for line in script.splitlines() if "#SBATCH" in line]
    words = [word for line in lines for word in shlex.split(line)]
    assert len(words) == len(lines)
    return {name: value for name, _, value in (word.partition("=") for word in words)}


def start(
    folder: Path,
    script: str,
    tasks: int = 1,
    state: str = "RUNNING",
    preempted: str = "None",
    array_task: int | None = None,
) -> subprocess.Popen:
    """Runs a batch script as SLURM does, beside programs that stand in for SLURM's.

    With ``array_task`` as a task of an array, of which it has the number.
    """
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    for name, text in {"srun": SRUN, "scancel": SCANCEL, "scontrol": SCONTROL}.items():
        (programs / name).write_text(f"#!{sys.executable} -S{text}")
        (programs / name).chmod(0o755)
    environ = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    environ |= {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "SLURM_JOB_ID": JOB,
        "TASKS": str(tasks),
        "STATE": state,
        "PREEMPTED": preempted,
        "JOB": JOB,
    }
    if array_task is not None:
        own = {"SLURM_ARRAY_JOB_ID": JOB, "SLURM_ARRAY_TASK_ID": str(array_task)}
        environ |= own | {"JOB": f"{JOB}_{array_task}"}
    (folder / "script").write_text(script)
    return subprocess.Popen(
        ["bash", "script"],
        cwd=folder,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen, seconds: float = 60) -> tuple[int, str]:
    try:
        out, _ = process.communicate(timeout=seconds)
    finally:
        end_group(process)
    return process.returncode, out


def end_group(process: subprocess.Popen) -> None:
    """Ends what a script leaves running, as SLURM does."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def requeued(folder: Path, job: str = JOB) -> bool:
    asked = folder / "scontrol"
    return asked.exists() and f"requeue {job}" in asked.read_text().splitlines()


def test_a_job_asks_for_what_it_is_given():
    job = SlurmJob(
        job_name="run",
        nodes=2,
        tasks_per_node=8,
        gpus_per_node=8,
        cpus_per_task=4,
        memory_per_node="64G",
        time_limit="2-00:00:00",
        partition="gpu",
        account="lab",
        qos="high",
        constraint="a100|h100",
        output="out-%j.txt",
        array="0-7%4",
        notice_s=300,
        options=("--exclusive", "--mail-type=END"),
    )
    assert options_of(sbatch_script(job, ["true"])) == {
        "--job-name": "run",
        "--nodes": "2",
        "--ntasks-per-node": "8",
        "--gpus-per-node": "8",
        "--cpus-per-task": "4",
        "--mem": "64G",
        "--time": "2-00:00:00",
        "--partition": "gpu",
        "--account": "lab",
        "--qos": "high",
        "--constraint": "a100|h100",
        "--output": "out-%j.txt",
        "--array": "0-7%4",
        "--signal": "B:TERM@300",
        "--requeue": "",
        "--open-mode": "append",
        "--exclusive": "",
        "--mail-type": "END",
    }


def test_what_is_not_given_is_not_asked_for():
    assert set(options_of(sbatch_script(SlurmJob(), ["true"]))) == {
        *("--job-name", "--nodes", "--ntasks-per-node", "--output"),
        *("--signal", "--requeue", "--open-mode"),
    }


def test_a_job_that_is_not_queued_again_lets_slurm_tell_the_tasks():
    options = options_of(sbatch_script(SlurmJob(requeue=False), ["true"]))
    assert options["--signal"] == "TERM@120"
    assert "--no-requeue" in options and "--requeue" not in options


def test_options_come_before_the_first_command():
    lines = sbatch_script(SlurmJob(setup=("module load cuda",)), ["true"]).splitlines()
    last = max(i for i, line in enumerate(lines) if line.startswith("#SBATCH"))
    assert all(line.startswith("#") for line in lines[:last])


@pytest.mark.parametrize("requeue", [True, False])
def test_values_with_blanks_and_quotes_reach_the_program_unchanged(requeue, tmp_path):
    awkward = 'it\'s $HOME `x` "y" \\ #z'
    job = SlurmJob(job_name="a 'b'", environ={"AWKWARD": awkward}, requeue=requeue, cpus_per_task=2)
    show = "import os, sys; print(os.environ['AWKWARD'], sys.argv[1:], sep='|')"
    script = sbatch_script(job, [sys.executable, "-S", "-c", show, awkward, "", "*"])
    assert options_of(script)["--job-name"] == "a 'b'"
    code, out = finish(start(tmp_path, script))
    assert (code, out) == (0, f"{awkward}|{[awkward, '', '*']}\n")


def test_setup_runs_first_and_the_environment_wins(tmp_path):
    job = SlurmJob(setup=("export A=setup", "echo ready"), environ={"A": "given"})
    code, out = finish(start(tmp_path, sbatch_script(job, ["sh", "-c", "echo $A"])))
    assert (code, out.splitlines()) == (0, ["ready", "given"])


def test_a_strict_setup_does_not_break_the_end(tmp_path):
    job = SlurmJob(setup=("set -euo pipefail",))
    process = start(tmp_path, sbatch_script(job, ["sh", "-c", "exit 5"]), preempted="2026-01-01")
    assert finish(process)[0] == 5
    assert requeued(tmp_path)


@pytest.mark.parametrize(
    ("job", "devices"),
    [
        (SlurmJob(gpus_per_node=4), "0,1,2,3"),
        (SlurmJob(gpus_per_node=1), None),
        (SlurmJob(gpus_per_node=4, tasks_per_node=4), None),
        (SlurmJob(tasks_per_node=4), None),
    ],
)
def test_a_task_alone_on_its_machine_gets_all_gpus(job, devices):
    exported = [
        line for line in sbatch_script(job, ["true"]).splitlines() if "LOCAL_DEVICE_IDS" in line
    ]
    assert exported == ([f"export JAX_LOCAL_DEVICE_IDS={devices}"] if devices else [])


def test_a_failed_run_gives_its_code_and_is_not_queued_again(tmp_path):
    code, _ = finish(start(tmp_path, sbatch_script(SlurmJob(), ["sh", "-c", "exit 7"])))
    assert code == 7
    assert not requeued(tmp_path)


def test_a_finished_run_is_not_queued_again(tmp_path):
    assert finish(start(tmp_path, sbatch_script(SlurmJob(), ["true"])))[0] == 0
    assert not requeued(tmp_path)


def test_a_run_that_a_preemption_has_stopped_is_queued_again(tmp_path):
    script = sbatch_script(SlurmJob(), ["true"])
    assert finish(start(tmp_path, script, preempted="2026-01-01T00:00:01"))[0] == 0
    assert requeued(tmp_path)


def test_a_preempted_task_of_an_array_is_queued_again_and_the_others_are_not(tmp_path):
    script = sbatch_script(SlurmJob(array="0-3"), ["true"])
    finish(start(tmp_path, script, preempted="2026-01-01T00:00:01", array_task=2))
    assert (tmp_path / "scontrol").read_text().splitlines() == [
        f"show job {JOB}_2", f"show job {JOB}_2", f"requeue {JOB}_2",
    ]  # fmt: skip


STOPPABLE = """
import signal, sys, time
def stop(*_):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(1); open("saved", "a").write("x"); sys.exit(3)
signal.signal(signal.SIGTERM, stop)
open("ready", "a").write("x")
while True: time.sleep(0.05)
"""


@pytest.mark.processes
@pytest.mark.parametrize(
    ("state", "array_task"), [("RUNNING", None), ("CANCELLED", None), ("RUNNING", 3)]
)
def test_the_notice_is_passed_on_and_waited_for_and_the_job_queued_again(
    state, array_task, tmp_path
):
    script = sbatch_script(SlurmJob(), [sys.executable, "-S", "-c", STOPPABLE])
    process = start(tmp_path, script, tasks=2, state=state, array_task=array_task)
    ready = tmp_path / "ready"
    end = time.monotonic() + 20
    while not (ready.exists() and len(ready.read_text()) == 2) and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)  # each ends a wait of the script
    try:
        assert process.wait(20) == 3
    finally:
        end_group(process)
        process.communicate()
    assert (tmp_path / "saved").read_text() == "xx"
    job = JOB if array_task is None else f"{JOB}_{array_task}"
    assert requeued(tmp_path, job) == (state == "RUNNING")  # a cancelled job is not


@pytest.mark.processes
def test_the_tasks_of_a_script_become_one_run_of_jax(tmp_path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    variables = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
        "PYTHONPATH": str(ROOT),
        "JAX_COORDINATOR_PORT": str(port),
    }
    program = tmp_path / "program.py"
    program.write_text(
        "import jax, xtrainer\n"
        "info = xtrainer.initialize(timeout_s=60)\n"
        "print(info.source, jax.process_index(), jax.process_count(), flush=True)\n"
    )
    job = SlurmJob(tasks_per_node=2, environ=variables)
    script = sbatch_script(job, [sys.executable, str(program)])
    code, out = finish(start(tmp_path, script, tasks=2), seconds=120)
    assert code == 0, out
    assert {"slurm 0 2", "slurm 1 2"} <= set(out.splitlines())


def test_a_script_is_written_where_it_is_asked_for(tmp_path):
    path = write_sbatch(tmp_path / "run.sbatch", SlurmJob(), ["true"])
    assert path.read_text() == sbatch_script(SlurmJob(), ["true"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"nodes": 0}, "nodes: found 0, expected a whole number >= 1"),
        ({"cpus_per_task": 0}, "cpus_per_task: found 0"),
        ({"gpus_per_node": "8"}, "gpus_per_node: found '8'"),
        ({"gpus_per_node": 8, "tasks_per_node": 2}, "tasks_per_node: found 2 tasks for 8 GPUs"),
        ({"notice_s": 30}, "notice_s: found 30, expected at least 60"),
        ({"time_limit": "4h"}, r"time_limit: found '4h', expected for example '04:00:00'"),
        ({"array": "0..7"}, r"array: found '0..7', expected for example '0-7', '1,3,5'"),
        ({"memory_per_node": "64 GB"}, "memory_per_node: found '64 GB'"),
        ({"job_name": ""}, "job_name: found ''"),
        ({"partition": "a\n#SBATCH --x"}, "partition: found .* expected a text of one line"),
        ({"environ": {"A-B": "1"}}, "environ: found 'A-B', expected the name of a variable"),
        ({"environ": {"A": 1}}, "environ.A: found 1, expected a text"),
        ({"options": ("exclusive",)}, "options: found 'exclusive', expected one like"),
        ({"options": "--exclusive"}, "options: found one text"),
        ({"setup": "module load"}, "setup: found one text, expected a list"),
    ],
)
def test_a_job_that_cannot_work_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        sbatch_script(SlurmJob(**settings), ["true"])


@pytest.mark.parametrize(
    "time_limit", ["30", "30:00", "04:00:00", "1-12", "1-12:30", "1-12:30:00", None]
)
def test_slurms_forms_of_a_time_are_taken(time_limit):
    assert SlurmJob(time_limit=time_limit).problems() == []


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ([], r"command: found \[\]"),
        ("python train.py", "command: found 'python train.py', expected the program"),
        (["--label", "python"], "command: found the option '--label'"),
    ],
)
def test_a_command_that_cannot_work_is_refused(command, message):
    with pytest.raises(ConfigError, match=message):
        sbatch_script(SlurmJob(), command)


def test_all_mistakes_of_a_job_and_its_command_are_told_together():
    with pytest.raises(ConfigError, match="3 mistakes") as refused:
        sbatch_script(SlurmJob(nodes=0, time_limit="4h"), [])
    assert len(refused.value.problems) == 3
