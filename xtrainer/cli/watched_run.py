"""A run of an experiment that is watched by ``xtrainer verify-resume``, in a process of its own.

Synopsis:
    python -m xtrainer.cli.watched_run EXPERIMENT FOLDER JOURNAL KILL_AT SAVE_EVERY [OVERRIDES]
"""

import sys
from pathlib import Path
from typing import Any

from xtrainer.callbacks import ModelCheckpointConfig
from xtrainer.cli.experiment import UsageError, load_experiment
from xtrainer.config import parse_config
from xtrainer.config.encode import CLASS_KEY
from xtrainer.launch import enable_compilation_cache, initialize
from xtrainer.testing import WitnessConfig, watch_batches

CACHE = "compiled"


def watched(config: Any, folder: Path, journal: Path, kill_at: int, save_every: int) -> Any:
    """Returns the config of an experiment with a run folder of its own and a witness.

    Args:
        config: Of the experiment.
        folder: The run folder.
        journal: What the witness writes.
        kill_at: The step after which it kills the process; -1: none.
        save_every: Steps between checkpoints; -1: as the config says.

    Raises:
        UsageError: If there is no checkpoint to go on from.
    """
    witness = WitnessConfig(every_n_steps=1, journal=str(journal), kill_at=kill_at).to_dict()
    with config.unlocked():
        config.trainer.logger.log_path = str(folder)
        config.trainer.logger.run_name = None
        config.trainer.enable_progress_bar = False
        callbacks = [dict(callback) for callback in config.trainer.callbacks]
        name = ModelCheckpointConfig.__name__
        saving = [callback for callback in callbacks if callback.get(CLASS_KEY) == name]
        if not saving:
            raise UsageError(
                "found no ModelCheckpointConfig among config.trainer.callbacks, expected one: a "
                "run that saves nothing begins anew."
            )
        for callback in saving if save_every > 0 else []:
            callback["every_n_steps"] = save_every
        config.trainer.callbacks = [*callbacks, witness]
        config.resume = "auto"
    return config


def main(arguments: list[str]) -> None:
    """Runs the experiment."""
    path, folder, journal, kill_at, save_every, *overrides = arguments
    initialize()
    experiment = load_experiment(path)
    config = parse_config(experiment.get_config(), overrides)
    watch_batches(Path(journal))
    if experiment.run is None:
        raise UsageError(f"{path}: found no function run(config). Add one that trains.")
    numbers = (int(kill_at), int(save_every))
    enable_compilation_cache(Path(folder).parent / CACHE)
    experiment.run(watched(config, Path(folder), Path(journal), *numbers))


if __name__ == "__main__":
    main(sys.argv[1:])
