"""A run of an experiment that is watched by another command, in a process of its own.

Synopsis:
    python -m xtrainer.cli.watched_run EXPERIMENT FOLDER JOURNAL SAVE_EVERY FAULT [OVERRIDES]
"""

import json
import sys
from pathlib import Path
from typing import Any

from xtrainer.callbacks import ModelCheckpointConfig
from xtrainer.cli.experiment import load_experiment
from xtrainer.cli.usage import UsageError
from xtrainer.config import parse_config
from xtrainer.config.encode import CLASS_KEY
from xtrainer.launch import enable_compilation_cache, initialize
from xtrainer.testing import Fault, WitnessConfig, plant, watch_batches, watch_saves

CACHE = "compiled"


def watched(config: Any, folder: Path, journal: Path, save_every: int, fault: Fault) -> Any:
    """Returns the config of an experiment with a run folder of its own and a witness.

    Args:
        config: Of the experiment.
        folder: The run folder.
        journal: What the witness writes.
        save_every: Steps between checkpoints; -1: as the config says.
        fault: What is going to happen; some settings must be such that it can.

    Raises:
        UsageError: If there is no checkpoint to go on from.
    """
    witness = WitnessConfig(every_n_steps=1, journal=str(journal)).to_dict()
    with config.unlocked():
        config.trainer.logger.log_path = str(folder)
        config.trainer.logger.run_name = None
        config.trainer.enable_progress_bar = False
        config.trainer.on_changed_data = "warn"  # which of them differ is told by the comparison
        callbacks = [dict(callback) for callback in config.trainer.callbacks]
        name = ModelCheckpointConfig.__name__
        saving = [callback for callback in callbacks if callback.get(CLASS_KEY) == name]
        if not saving:
            raise UsageError(
                "found no ModelCheckpointConfig among config.trainer.callbacks, expected one: a "
                "run that saves nothing begins anew."
            )
        for number, callback in enumerate(saving):
            # Wherever the experiment keeps its checkpoints, these are of another run.
            callback["log_path"] = None if number == 0 else str(folder / f"checkpoints-{number}")
            if save_every > 0:
                callback["every_n_steps"] = save_every
            if fault.kind == "disk-full":  # so that nothing else is written meanwhile
                callback["enable_async_checkpointing"] = False
        if fault.kind == "nan":
            config.trainer.check_for_nan, config.trainer.nonfinite_policy = True, "stop"
        config.trainer.callbacks = [*callbacks, witness]
        config.resume = "auto"
    return config


def main(arguments: list[str]) -> None:
    """Runs the experiment."""
    path, folder, journal, save_every, fault, *overrides = arguments
    initialize()
    experiment = load_experiment(path)
    config = parse_config(experiment.get_config(), overrides)
    if experiment.run is None:
        raise UsageError(f"{path}: found no function run(config). Add one that trains.")
    wanted, run_folder, notes = Fault(**json.loads(fault)), Path(folder), Path(journal)
    enable_compilation_cache(run_folder.parent / CACHE)
    watch_batches(notes)
    plant(wanted, notes)
    watch_saves(notes)  # around the fault: what it notes is written while the disk is not full
    experiment.run(watched(config, run_folder, notes, int(save_every), wanted))


if __name__ == "__main__":
    main(sys.argv[1:])
