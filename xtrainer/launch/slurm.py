"""How does a run start under SLURM? By a batch script that is written here.

Synopsis:
    job = SlurmJob(nodes=2, tasks_per_node=8, gpus_per_node=8, time_limit="04:00:00")
    write_sbatch("run.sbatch", job, ["python", "train.py", "--config.seed=1"])

    sbatch run.sbatch
"""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from xtrainer.errors import ConfigError

_KILL_WAIT_S = 30  # what remains of the notice when a run that does not stop is queued again
_TIME = re.compile(r"\d+(:\d\d){0,2}|\d+-\d+(:\d\d){0,2}")
_MEMORY = re.compile(r"\d+[KMGT]?")
_ARRAY = re.compile(r"\d+(-\d+(:\d+)?)?(,\d+(-\d+(:\d+)?)?)*(%\d+)?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TEXTS = ("job_name", "partition", "account", "qos", "constraint", "output")


@dataclass(frozen=True, kw_only=True)
class SlurmJob:
    """What a batch job asks SLURM for.

    Every task is one process of the run; ``xtrainer.initialize()`` joins them. With GPUs a task has
    either one GPU (``tasks_per_node`` equals ``gpus_per_node``) or, alone on its node, all.

    Example:
        >>> SlurmJob(nodes=2, gpus_per_node=8, tasks_per_node=3).problems()[0][:45]
        'tasks_per_node: found 3 tasks for 8 GPUs, exp'
    """

    job_name: str = "xtrainer"
    """The name in the queue."""
    nodes: int = 1
    """How many machines."""
    tasks_per_node: int = 1
    """How many processes on each."""
    gpus_per_node: int = 0
    """How many GPUs on each; 0 asks for none."""
    cpus_per_task: int | None = None
    """How many CPU cores each process has."""
    memory_per_node: str | None = None
    """Main memory of each machine, as in 64G."""
    time_limit: str | None = None
    """How long the job may run, as in 04:00:00 or 2-00:00:00; None for the partition's default."""
    partition: str | None = None
    """Which part of the cluster."""
    account: str | None = None
    """Who pays."""
    qos: str | None = None
    """Which quality of service."""
    constraint: str | None = None
    """Which features the machines must have."""
    output: str = "slurm-%j.out"
    """Where the output goes; a job that is queued again appends to it."""
    array: str | None = None
    """Numbers of the tasks of an array job, as 0-7 or 0-7%4 for four of them at a time; each is a
    job of its own, with its number in ``SLURM_ARRAY_TASK_ID``."""
    requeue: bool = True
    """Whether the job is queued again after its time, a preemption or a failed machine."""
    notice_s: int = 120
    """How long before the end of its time a run is told (SIGTERM), so that it can save."""
    environ: Mapping[str, str] = field(default_factory=dict)
    """Variables to set."""
    setup: Sequence[str] = ()
    """Lines of shell to run first, as they are: ``module load cuda``."""
    options: Sequence[str] = ()
    """Further options of sbatch: ``--exclusive``."""

    def problems(self) -> list[str]:
        """Returns one sentence for each value that cannot work."""
        return [*self._wrong_numbers(), *self._wrong_texts(), *self._wrong_lists()]

    def _wrong_numbers(self) -> list[str]:
        lowest = {"nodes": 1, "tasks_per_node": 1, "gpus_per_node": 0, "notice_s": 1}
        lowest |= {} if self.cpus_per_task is None else {"cpus_per_task": 1}
        found = []
        for name, low in lowest.items():
            value = getattr(self, name)
            if not isinstance(value, int) or value < low:
                found.append(f"{name}: found {value!r}, expected a whole number >= {low}.")
        if not found:
            if self.gpus_per_node and self.tasks_per_node not in (1, self.gpus_per_node):
                found.append(
                    f"tasks_per_node: found {self.tasks_per_node} tasks for {self.gpus_per_node} "
                    "GPUs, expected 1 (which has all of them) or one for each GPU."
                )
            if self.requeue and self.notice_s < 2 * _KILL_WAIT_S:
                found.append(
                    f"notice_s: found {self.notice_s}, expected at least {2 * _KILL_WAIT_S} with "
                    "requeue=True: SLURM counts in minutes, and the run needs time to save."
                )
        return found

    def _wrong_texts(self) -> list[str]:
        found = []
        for name in _TEXTS:
            text = getattr(self, name)
            if text is None and name not in ("job_name", "output"):
                continue
            if not isinstance(text, str) or not text or not text.isprintable():
                found.append(f"{name}: found {text!r}, expected a text of one line.")
        for name, form, example in (
            ("time_limit", _TIME, "'04:00:00' or '2-00:00:00'"),
            ("memory_per_node", _MEMORY, "'64G' or '512M'"),
            ("array", _ARRAY, "'0-7', '1,3,5' or '0-31%4'"),
        ):
            text = getattr(self, name)
            if text is not None and not (isinstance(text, str) and form.fullmatch(text)):
                found.append(f"{name}: found {text!r}, expected for example {example}.")
        return found

    def _wrong_lists(self) -> list[str]:
        found = []
        for name, value in self.environ.items():
            if not _VARIABLE.fullmatch(name):
                found.append(f"environ: found {name!r}, expected the name of a variable.")
            elif not isinstance(value, str) or "\0" in value:
                found.append(f"environ.{name}: found {value!r}, expected a text.")
        for name in ("setup", "options"):
            if isinstance(getattr(self, name), str):
                found.append(f"{name}: found one text, expected a list of them.")
        if not isinstance(self.options, str):
            for option in self.options:
                if not option.startswith("--") or not option.isprintable():
                    found.append(f"options: found {option!r}, expected one like '--exclusive'.")
        return found


def sbatch_script(job: SlurmJob, command: Sequence[str]) -> str:
    """Returns the batch script that runs ``command`` as every task of ``job``.

    With ``requeue`` the script is told ``notice_s`` before the end and passes that on to the run,
    which saves and stops; then the job is queued again, and the same command resumes. So it is
    after a preemption. A job that was cancelled is not queued again. Of an array each task is told
    and queued again for itself.

    Args:
        job: What to ask for.
        command: The program and its arguments, as in ``["python", "train.py"]``.

    Raises:
        ConfigError: Listing every mistake in ``job`` and ``command``.

    Example:
        >>> job = SlurmJob(nodes=2, requeue=False)
        >>> sbatch_script(job, ["python", "train.py"]).splitlines()[-1]
        'srun --kill-on-bad-exit=1 --label python train.py'
    """
    problems = job.problems()
    if isinstance(command, str) or not command or not all(isinstance(c, str) for c in command):
        problems.append(
            f"command: found {command!r}, expected the program and its arguments as strings, for "
            "example ['python', 'train.py']."
        )
    elif command[0].startswith("-"):
        problems.append(f"command: found the option {command[0]!r}, expected a program first.")
    if problems:
        raise ConfigError(problems)
    cpus = [] if job.cpus_per_task is None else [f"--cpus-per-task={job.cpus_per_task}"]
    srun = shlex.join(["srun", "--kill-on-bad-exit=1", "--label", *cpus, *command])
    lines = ["#!/bin/bash", *(f"#SBATCH {option}" for option in _options(job)), ""]
    lines += [*job.setup, *_exports(job), ""]
    if job.requeue:
        lines.append(_REQUEUE.format(srun=srun, wait_s=job.notice_s - _KILL_WAIT_S))
    else:
        lines.append(srun)
    return "\n".join(lines) + "\n"


def write_sbatch(path: str | os.PathLike[str], job: SlurmJob, command: Sequence[str]) -> Path:
    """Writes the batch script of :func:`sbatch_script` and returns its path.

    Args:
        path: Where to; a file that is there is replaced.
        job: What to ask for.
        command: The program and its arguments.

    Raises:
        ConfigError: Listing every mistake in ``job`` and ``command``.
    """
    text = sbatch_script(job, command)
    target = Path(path)
    target.write_text(text, encoding="utf-8")
    return target


def _options(job: SlurmJob) -> list[str]:
    asked = {
        "job-name": job.job_name,
        "nodes": job.nodes,
        "ntasks-per-node": job.tasks_per_node,
        "gpus-per-node": job.gpus_per_node or None,
        "cpus-per-task": job.cpus_per_task,
        "mem": job.memory_per_node,
        "time": job.time_limit,
        "partition": job.partition,
        "account": job.account,
        "qos": job.qos,
        "constraint": job.constraint,
        "output": job.output,
        "array": job.array,
        # B: the notice goes to the script alone, which passes it on; else to the tasks themselves.
        "signal": f"{'B:' if job.requeue else ''}TERM@{job.notice_s}",
    }
    lines = [f"--{name}={shlex.quote(str(value))}" for name, value in asked.items() if value]
    kept = ["--requeue", "--open-mode=append"] if job.requeue else ["--no-requeue"]
    return [*lines, *kept, *job.options]


def _exports(job: SlurmJob) -> list[str]:
    variables = {"PYTHONUNBUFFERED": "1"}
    if job.tasks_per_node == 1 and job.gpus_per_node > 1:
        # Under SLURM JAX gives a process the one GPU of its number, unless told otherwise.
        variables["JAX_LOCAL_DEVICE_IDS"] = ",".join(map(str, range(job.gpus_per_node)))
    variables |= job.environ
    return [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]


_REQUEUE = """\
# SLURM tells this script shortly before the end (see --signal). The run is told in turn; when it
# has saved and stopped, or takes too long to, the job is queued again. A cancelled job is not.
# One task of an array has the array's own number, which stands for all of its tasks.
told=
job=${{SLURM_ARRAY_JOB_ID:+${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID}}
job=${{job:-$SLURM_JOB_ID}}
job_is() {{ scontrol show job "$job" | grep "$1" >/dev/null; }}
queue_again() {{ if job_is JobState=RUNNING; then scontrol requeue "$job"; fi; }}
pass_on() {{
    told=1
    scancel --signal=TERM "$job"  # to the tasks; a SIGTERM to srun would kill them
    (sleep {wait_s}; queue_again) &
}}
trap pass_on TERM

{srun} &
step=$!
while wait "$step"; kill -0 "$step" 2>/dev/null; do :; done  # a signal ends a wait early
code=0
wait "$step" || code=$?
trap '' TERM

# A preempted run is told by SLURM itself; having saved, it may well have ended with 0.
if [ -n "$told" ] || job_is 'PreemptTime=[0-9]'; then queue_again; fi
exit "$code\""""
