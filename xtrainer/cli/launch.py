"""``xtrainer launch``: one run of several processes on this machine, or a job of SLURM."""

import argparse
from collections.abc import Sequence
from typing import Any

from xtrainer.cli.usage import sub_parser
from xtrainer.launch.command import add_options, follow
from xtrainer.launch.slurm_settings import PREFIX

_EXAMPLES = """\
examples:
  xtrainer launch -n 2 --devices-per-process 4 -- experiments/byte_lm.py --config.data.seed=1
  xtrainer launch -n 2 -- -m xtrainer train experiments/byte_lm.py --config.num_train_steps=100
  xtrainer launch --slurm run.sbatch --slurm.nodes=2 --slurm.gpus_per_node=8 \\
      --slurm.tasks_per_node=8 --slurm.time_limit=04:00:00 -- experiments/byte_lm.py

The script calls xtrainer.initialize() first. Lines come out as "[1] ...", behind the number of the
process. The script of --slurm is queued again after its time or a preemption, and goes on.

exit codes: that of the first process that failed (128 + n for signal n); 124 after --timeout; 2 the
command line cannot be followed; otherwise 0."""


def add_parser(commands: Any) -> None:
    """Adds the sub-command to those of a parser."""
    description = "Runs a script in several processes, joined to one run."
    parser = sub_parser(commands, "launch", description, _EXAMPLES)
    parser.usage = "%(prog)s (-n N | --slurm FILE) [options] -- script.py [arguments]"
    add_options(parser)
    parser.set_defaults(run=run, prefix=PREFIX)


def run(options: argparse.Namespace, settings: Sequence[str]) -> int:
    """Runs or writes what the command line says; returns the exit code.

    Raises:
        ConfigError: If it cannot be followed.
    """
    return follow(options, settings, options.behind)
