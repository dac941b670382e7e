"""The digits for every setting of a grid: one after the other, or each as a task of a SLURM array.

Synopsis:
    python experiments/sweep.py --config.sweep.folder=runs/sweep                    # all tasks
    python experiments/sweep.py --config.sweep.folder=runs/sweep --config.sweep.task=3
    sbatch experiments/launch/slurm_array.sbatch                                    # as an array
    python experiments/evaluate.py runs/sweep/task_3
"""

import copy
import itertools
import math
import os
from pathlib import Path
from typing import Any

import digits
from ml_collections import ConfigDict, config_dict
from run_record import new_run_folder, say

import xtrainer as xt
from xtrainer.errors import ConfigError

GRID: dict[str, tuple[Any, ...]] = {
    "optimizer.scheduler.lr": (1e-3, 3e-3, 1e-2),
    "trainer.seed": (0, 1),
}
"""What is tried for which keys of the config; the last one changes from task to task."""

NUM_TASKS = math.prod(len(values) for values in GRID.values())
TASK_VARIABLE = "SLURM_ARRAY_TASK_ID"


def get_config() -> ConfigDict:
    """Returns the settings of the digits, in short runs, and those of the sweep."""
    config: Any = digits.get_config()
    config.num_epochs = 4
    config.trainer.check_val_every_n_epoch = 1
    config.data.seed = config.trainer.get_oneway_ref("seed")
    config.sweep = {
        "folder": new_run_folder("sweep"),
        "task": config_dict.placeholder(int),  # None: that of the SLURM array, or all of them
    }
    return config


def settings_of(task: int) -> dict[str, Any]:
    """Returns the settings of a task by the config's keys.

    Raises:
        ConfigError: If there is no such task.

    Example:
        >>> settings_of(3)
        {'optimizer.scheduler.lr': 0.003, 'trainer.seed': 1}
    """
    if not 0 <= task < NUM_TASKS:
        raise ConfigError(
            f"sweep.task: found {task}, expected one of the {NUM_TASKS} tasks of the grid, 0 to "
            f"{NUM_TASKS - 1}. Submit the array with --array=0-{NUM_TASKS - 1}."
        )
    chosen = list(itertools.product(*GRID.values()))[task]
    return dict(zip(GRID, chosen, strict=True))


def tasks_of(config: Any) -> list[int]:
    """Returns the tasks that this program does: one, or all of them.

    Raises:
        ConfigError: If SLURM gives the task a number that is none.
    """
    if config.sweep.task is not None:
        return [config.sweep.task]
    given = os.environ.get(TASK_VARIABLE)
    if given is None:
        return list(range(NUM_TASKS))
    if not given.isdecimal():
        raise ConfigError(f"{TASK_VARIABLE}: found {given!r}, expected a whole number.")
    return [int(given)]


def config_of(config: Any, task: int) -> Any:
    """Returns the config of a task: its settings, and a run folder that is its own for good."""
    own = copy.deepcopy(config)  # with its references
    for key, value in settings_of(task).items():
        own.update_from_flattened_dict({key: value})
    own.trainer.logger.log_path = str(folder_of(config, task))
    return own


def folder_of(config: Any, task: int) -> Path:
    """Returns the run folder of a task."""
    return Path(config.sweep.folder) / f"task_{task}"


def make_loaders(data: Any) -> dict[str, Any]:
    """Returns the loaders of the three sets from the config's section ``data``."""
    return digits.make_loaders(data)


def make_trainer(config: Any, mesh: Any = None) -> digits.DigitClassifier:
    """Returns the trainer of the first task that this program does."""
    return digits.make_trainer(config_of(config, tasks_of(config)[0]), mesh)


def run(config: Any) -> dict[int, float]:
    """Does the tasks; returns the test accuracy of all that are done by now, in whatever program.

    A task that was stopped goes on where it was.
    """
    for task in tasks_of(config):
        digits.run(config_of(config, task))
    done = {}
    for task in range(NUM_TASKS):
        rows = xt.read_metrics(folder_of(config, task)) if folder_of(config, task).exists() else []
        tests = [row["metrics"]["accuracy"] for row in rows if row["set"] == "test"]
        settings = " ".join(f"{key}={value!r}" for key, value in settings_of(task).items())
        say(f"task {task}: {settings} test accuracy: {tests[-1] if tests else 'not done'}")
        done |= {task: tests[-1]} if tests else {}
    return done


if __name__ == "__main__":
    xt.initialize()
    run(xt.parse_config(get_config()))
