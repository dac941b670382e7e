"""A run that says when it has come to a step, and waits there for a line.

Arguments: the folder, the step, and ``locks`` or ``no-locks`` of the file system.
"""

import sys
from pathlib import Path
from typing import Any

import jax
import probes
import zoo

import xtrainer as xt

STEPS = 6


def make_trainer(folder: Path, *callbacks: Any) -> Any:
    """Returns a trainer that saves after each step, and may fail to."""
    saving = xt.ModelCheckpointConfig(every_n_steps=1, max_to_keep=None, max_failed_saves=99)
    trainer = probes.traced(logger=zoo.file_logger(folder), callbacks=[saving])
    trainer.callbacks.extend(make(trainer) for make in callbacks)
    return trainer


def train(trainer: Any) -> None:
    """Trains to the end, from wherever the folder stands."""
    trainer.train_model(probes.numbered(STEPS), num_train_steps=STEPS)


def without_locks(*_: Any) -> None:
    """Stands for ``flock`` where there are none."""
    raise OSError(37, "No locks available")


def main() -> None:
    """Runs the job in this process."""
    from xtrainer.launch import folder_lock

    folder, step, locks = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    xt.initialize()
    jax.config.update("jax_numpy_rank_promotion", "raise")
    if locks == "no-locks":
        folder_lock.fcntl.flock = without_locks  # type: ignore[assignment]

    def wait(trainer: Any, metrics: Any, epoch: int, at: int) -> None:
        if at == step:
            print("waits", flush=True)
            sys.stdin.readline()

    train(make_trainer(folder, probes.acting("on_training_step", wait)))


if __name__ == "__main__":
    main()
