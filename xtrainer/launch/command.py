"""What does a command line say of a run of several processes? Started here, or a job of SLURM."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from xtrainer.errors import ConfigError
from xtrainer.launch.local import run_local
from xtrainer.launch.slurm import write_sbatch
from xtrainer.launch.slurm_settings import PREFIX, slurm_job


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of a launch to a parser."""
    parser.add_argument(
        "-n",
        "--num-processes",
        type=int,
        metavar="N",
        help="how many processes the run has",
    )
    parser.add_argument(
        "--devices-per-process",
        type=int,
        metavar="D",
        help="virtual CPU devices of each process; the run is then on the CPU",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        metavar="S",
        help="seconds that the run may take; then exit code 124",
    )
    parser.add_argument(
        "--failure-grace",
        type=float,
        default=5.0,
        metavar="S",
        help="seconds from a failure until the other processes are killed (default: %(default)g)",
    )
    parser.add_argument(
        "--stop-grace",
        type=float,
        default=60.0,
        metavar="S",
        help="seconds from Ctrl-C or SIGTERM until all are killed (default: %(default)g)",
    )
    parser.add_argument(
        "--slurm",
        type=Path,
        metavar="FILE",
        help="start nothing: write a batch script, with --slurm.FIELD=VALUE for SlurmJob's fields",
    )


def is_setting(argument: str) -> bool:
    """Says whether an argument describes a job of SLURM."""
    return argument.startswith(PREFIX)


def follow(options: argparse.Namespace, settings: Sequence[str], command: Sequence[str]) -> int:
    """Does what a command line says, and returns the exit code.

    Args:
        options: Of :func:`add_options`.
        settings: Of a job of SLURM.
        command: A script, or ``-m`` and a module, with its own arguments.

    Raises:
        ConfigError: If it cannot be followed.
    """
    if not command:
        raise ConfigError(
            "found no script; put it behind the options and --, as in: -n 2 -- train.py"
        )
    if options.slurm is not None:
        return _write(options.slurm, settings, command)
    if settings:
        raise ConfigError(f"found {settings[0]!r} without --slurm FILE, the script to write.")
    if options.num_processes is None:
        raise ConfigError("the following arguments are required: -n/--num-processes, or --slurm")
    return run_local(
        [sys.executable, *command],
        num_processes=options.num_processes,
        devices_per_process=options.devices_per_process,
        timeout_s=options.timeout,
        failure_grace_s=options.failure_grace,
        stop_grace_s=options.stop_grace,
    )


def _write(path: Path, settings: Sequence[str], command: Sequence[str]) -> int:
    job = slurm_job(settings)
    try:
        write_sbatch(path, job, ["python", *command])
    except OSError as error:
        raise ConfigError(
            f"--slurm: cannot write {str(path)!r} ({error.strerror}), expected the path of a file "
            "in a folder that exists."
        ) from error
    print(f"Wrote {path}. Hand it in with: sbatch {path}")
    return 0
