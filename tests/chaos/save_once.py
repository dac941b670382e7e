"""Saves one step of a small trainer to the folder of its argument; watched from outside."""

import sys
from pathlib import Path

import mutants
import probes
import zoo

import xtrainer as xt


def main() -> None:
    """Trains two steps and saves the second."""
    mutants.apply()
    folder = Path(sys.argv[1])
    trainer = probes.traced(
        logger=zoo.file_logger(folder), callbacks=[xt.ModelCheckpointConfig(save_last=True)]
    )
    trainer.train_model(probes.numbered(2), num_train_steps=2)


if __name__ == "__main__":
    main()
