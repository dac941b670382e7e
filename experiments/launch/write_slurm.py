"""Writes ``slurm.sbatch``, two machines with eight GPUs each, and ``slurm_array.sbatch``, a sweep.

Change the jobs for your cluster.

Synopsis:
    python experiments/launch/write_slurm.py
    sbatch experiments/launch/slurm.sbatch
    sbatch experiments/launch/slurm_array.sbatch
"""

from pathlib import Path

from xtrainer.launch.slurm import SlurmJob, write_sbatch

SETUP = ("source venv/bin/activate",)
JOB = SlurmJob(
    job_name="byte-lm",
    nodes=2,
    tasks_per_node=8,
    gpus_per_node=8,
    cpus_per_task=8,
    memory_per_node="256G",
    time_limit="04:00:00",
    partition="gpu",
    output="byte-lm-%j.out",
    setup=SETUP,
)
# The log path is fixed, so that a job that is queued again finds its checkpoints.
COMMAND = ("python", "experiments/byte_lm.py", "--config.trainer.logger.log_path=runs/byte-lm")

SWEEP = SlurmJob(
    job_name="sweep",
    array="0-5%4",  # the tasks of experiments/sweep.py, four at a time
    gpus_per_node=1,
    cpus_per_task=4,
    memory_per_node="16G",
    time_limit="01:00:00",
    partition="gpu",
    output="sweep-%A_%a.out",
    setup=SETUP,
)
# One folder for all; within it each task has its own, also when it is queued again.
SWEEP_COMMAND = ("python", "experiments/sweep.py", "--config.sweep.folder=runs/sweep")

if __name__ == "__main__":
    folder = Path(__file__).parent
    print(write_sbatch(folder / "slurm.sbatch", JOB, COMMAND))
    print(write_sbatch(folder / "slurm_array.sbatch", SWEEP, SWEEP_COMMAND))
