"""Which settings read the digits best? A study of short runs, in one or several programs at once.

Synopsis:
    python experiments/study.py --config.study.folder=runs/study
    python experiments/study.py --config.study.folder=runs/study    # goes on, or helps the first
    python experiments/evaluate.py runs/study/trial_3
"""

import copy
from pathlib import Path
from typing import Any

import digits
from ml_collections import ConfigDict
from run_record import new_run_folder, say, write_record

import xtrainer as xt
from xtrainer.tuning import Choice, Float, run_study, suggest, watch_trial

SPACE = {
    "optimizer.scheduler.lr": Float(1e-4, 3e-2, log=True),
    "optimizer.weight_decay": Float(1e-4, 1e-1, log=True),
    "model.model_config.dropout_rate": Float(0.0, 0.7),
    "data.batch_size": Choice((32, 64, 128)),
}
"""What the study may set, by the config's keys."""


def get_config() -> ConfigDict:
    """Returns the settings of the digits, in short runs, and those of the study."""
    config: Any = digits.get_config()
    config.num_epochs = 4
    config.trainer.check_val_every_n_epoch = 1
    config.study = {"folder": new_run_folder("study"), "num_trials": 20, "seed": 0}
    return config


def run(config: Any) -> Any:
    """Runs the trials that are missing, prints the best of all and returns the study."""

    def objective(trial: Any, folder: Path) -> float:
        own = copy.deepcopy(config)  # with its references
        suggest(trial, SPACE, own)
        own.trainer.logger.log_path = str(folder)
        trainer, loaders = digits.make_trainer(own), digits.make_loaders(own.data)
        write_record(folder, "digits", own)
        watch = watch_trial(trainer, trial, "accuracy")
        trainer.train_model(loaders["train"], loaders["val"], num_epochs=own.num_epochs)
        return watch.result()

    asked = config.study
    study = run_study(objective, asked.folder, asked.num_trials, direction="max", seed=asked.seed)
    say(
        f"best of {len(study.trials)} trials: {study.best_value!r}, trial {study.best_trial.number}"
    )
    for key, value in study.best_params.items():
        say(f"--config.{key}={value!r}")
    return study


if __name__ == "__main__":
    run(xt.parse_config(get_config()))
