"""How good is the best checkpoint of a run? The same test metrics as at the end of its training.

Synopsis:
    python experiments/evaluate.py RUN_FOLDER
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import byte_lm
import digits
import gan
import lora
from run_record import read_record, show

import xtrainer as xt
from xtrainer.errors import ConfigError, did_you_mean

EXPERIMENTS: dict[str, tuple[type[xt.TrainerModule], Callable[[Any], dict[str, Any]]]] = {
    "byte_lm": (byte_lm.ByteLM, byte_lm.make_loaders),
    "digits": (digits.DigitClassifier, digits.make_loaders),
    "gan": (gan.GanTrainer, gan.make_loaders),
    "lora": (lora.LoraLM, lora.make_loaders),
}
"""What a run folder's record may name; nothing is imported because a file asks for it."""


def evaluate(run_folder: str | Path) -> dict[str, float]:
    """Returns the test metrics of the best checkpoint.

    Raises:
        ConfigError: If the run is of an experiment that this script does not know.
    """
    name, config = read_record(run_folder)
    if name not in EXPERIMENTS:
        raise ConfigError(
            f"Found a run of the experiment {name!r}. {did_you_mean(name, EXPERIMENTS)}"
        )
    trainer_class, make_loaders = EXPERIMENTS[name]
    trainer = trainer_class.load_from_checkpoint(run_folder)
    return trainer.test_model(make_loaders(config.data)["test"])


def main() -> None:
    """Prints the test metrics of a run folder."""
    parser = argparse.ArgumentParser(description="Evaluates the best checkpoint of a run.")
    parser.add_argument("run_folder", help="what the training run printed as its run folder")
    show("test", evaluate(parser.parse_args().run_folder))


if __name__ == "__main__":
    main()
