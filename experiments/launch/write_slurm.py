"""Writes ``slurm.sbatch``: two machines with eight GPUs each. Change it for your cluster.

Synopsis:
    python experiments/launch/write_slurm.py && sbatch experiments/launch/slurm.sbatch
"""

from pathlib import Path

from xtrainer.launch.slurm import SlurmJob, write_sbatch

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
    setup=("source venv/bin/activate",),
)
# The log path is fixed, so that a job that is queued again finds its checkpoints.
COMMAND = ("python", "experiments/byte_lm.py", "--config.trainer.logger.log_path=runs/byte-lm")

if __name__ == "__main__":
    print(write_sbatch(Path(__file__).with_name("slurm.sbatch"), JOB, COMMAND))
