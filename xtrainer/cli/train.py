"""``xtrainer train``: runs an experiment file as ``python FILE`` would, and ends with its code."""

import argparse
import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from xtrainer.checkpoint.items import program_is
from xtrainer.cli.experiment import Experiment, checked_config, load_experiment
from xtrainer.cli.record import write_record
from xtrainer.cli.usage import UsageError, sub_parser
from xtrainer.config import Config
from xtrainer.errors import XTrainerError
from xtrainer.launch import initialize, is_main_process
from xtrainer.launch.exits import code_of_run
from xtrainer.launch.folder_lock import holder_of
from xtrainer.loggers import run_folder
from xtrainer.trainer import TrainerConfig

_EXAMPLES = """\
examples:
  xtrainer train experiments/byte_lm.py
  xtrainer train experiments/byte_lm.py --config.num_train_steps=100 --config.data.batch_size=4

The file's run(config) is called. Without one the trainer of make_trainer(config) trains on the
loaders of make_loaders(config.data), for num_epochs or num_train_steps, and is tested. Started
again with the same command, a run with a ModelCheckpoint goes on where it was.

exit codes: 0 done; 1 an error; 2 a mistake in the command line or the config (all are told before
anything is compiled); 3 steps were not finite; 4 a checkpoint could not be written; 5 there are
checkpoints, and none is usable; 124 nothing moved on; 130 Ctrl-C, 143 SIGTERM: saved and ended."""


def add_parser(commands: Any) -> None:
    """Adds the sub-command to those of a parser."""
    parser = sub_parser(
        commands,
        "train",
        "Trains what an experiment file describes.",
        _EXAMPLES,
        takes_settings=True,
    )
    parser.add_argument(
        "experiment", help="a Python file with get_config(), and run(config) or make_trainer(...)"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Trains; returns the exit code of the run.

    Raises:
        UsageError: If the command line or the config cannot be followed.
    """
    experiment = load_experiment(options.experiment)
    initialize()
    config = checked_config(experiment.get_config(), overrides, needs_model=False)
    try:
        with program_is(experiment.path):
            if experiment.run is None:
                _train(experiment, config)
            else:
                _note(experiment, config, run_folder(_logger_of(config)))
                experiment.run(config)
    except XTrainerError as error:
        if jax.process_count() == 1:
            raise
        sys.excepthook(type(error), error, error.__traceback__)  # so that the others hear of it
        return error.exit_code
    return code_of_run()


def _train(experiment: Experiment, config: Any) -> None:
    """Does what most experiments' ``run(config)`` does."""
    if experiment.make_loaders is None:
        raise UsageError(
            f"{experiment.path}: found no function run(config) and no make_loaders(data). Add one "
            'of them; make_loaders returns a dictionary with "train", and with "val" and "test" '
            "where there are such sets."
        )
    loaders = experiment.make_loaders(config.get("data"))
    if "train" not in loaders:
        raise UsageError(f"make_loaders: found the sets {sorted(loaders)}, expected 'train'.")
    trainer = experiment.make_trainer(config)
    _note(experiment, config, trainer.log_path)
    results = trainer.train_model(
        loaders["train"],
        loaders.get("val"),
        test_loader=loaders.get("test"),
        num_epochs=config.get("num_epochs"),
        num_train_steps=config.get("num_train_steps"),
        steps_per_epoch=config.get("steps_per_epoch"),
        resume=config.get("resume", "auto"),
    )
    if is_main_process():
        show_metrics("test", results.get("test", {}))
        print(f"run folder: {trainer.log_path or 'none'}")


def show_metrics(title: str, metrics: Mapping[str, float]) -> None:
    """Prints metrics to the last digit, one a line."""
    for name in sorted(metrics):
        print(f"{title} {name}: {metrics[name]!r}")


def _note(experiment: Experiment, config: Any, folder: Path | None) -> None:
    """Keeps the settings in the run folder, for ``xtrainer evaluate``."""
    if folder is None or not is_main_process() or holder_of(folder) is not None:
        return
    with contextlib.suppress(OSError):  # a folder that cannot be written is told by the run
        write_record(folder, experiment.path.stem, config)


def _logger_of(config: Any) -> Any:
    if "trainer" not in config:
        return None
    return Config.from_config_dict(TrainerConfig, config.trainer).logger
