"""A run on which three callbacks act: it waits for nothing, and is killed where it is told to.

Arguments: the folder, and ``step:N`` or ``MOMENT:N``: after the N-th step, before it is saved, or
at that moment of the N-th save that comes to it.
"""

import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np
import probes
import zoo

import xtrainer as xt
from xtrainer.checkpoint import commit

ROWS, BATCH = 32, 4
"""Passes of 8 steps, then of 4 and of 2."""
STEPS = 60
"""More than are taken: the run is stopped early."""
NEVER: dict[str, Any] = {"monitor": "loss", "min_delta": 1e9}
"""What is asked of a metric is only met by its first value."""
REDUCE = xt.ReduceLROnPlateauConfig(**NEVER, patience=2, factor=0.5, cooldown=1)
GROW = xt.BatchSizeGrowthConfig(**NEVER, patience=3, max_batch_size=16, scale_lr="sqrt")
STOP = xt.EarlyStoppingConfig(**NEVER, patience=10)


def configs() -> list[xt.CallbackConfig]:
    """Returns all that acts in the run, and what saves it."""
    saving = xt.ModelCheckpointConfig(
        every_n_steps=3, max_to_keep=None, enable_async_checkpointing=False
    )
    return [REDUCE, GROW, STOP, xt.LearningRateMonitorConfig(), saving]


def make_trainer(folder: Path) -> Any:
    """Returns a trainer that validates after every second step."""
    return probes.traced(
        logger=zoo.file_logger(folder),
        callbacks=configs(),
        check_val_every_n_steps=2,
        check_val_every_n_epoch=-1,
    )


def train(trainer: Any) -> None:
    """Trains to the end, from wherever the folder stands."""
    train, val = xt.ArrayLoader(probes.examples(ROWS), BATCH, shuffle=True), probes.numbered(1)
    trainer.train_model(train, val, num_train_steps=STEPS)


def die() -> None:
    """Ends this process as a loss of power does."""
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Runs the job in this process."""
    folder, (moment, at) = Path(sys.argv[1]), sys.argv[2].split(":")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    seen: Counter[str] = Counter()

    def watcher(reached: str) -> None:
        seen[reached] += 1
        if reached == moment and seen[reached] == int(at):
            die()

    commit.watcher = watcher
    trainer = make_trainer(folder)
    if moment == "step":
        act = probes.acting("on_training_step", lambda t, m, e, s: s == int(at) and die())
        trainer.callbacks[:0] = [act(trainer)]
    train(trainer)


def outcome(trainer: Any, folder: Path) -> dict[str, Any]:
    """Returns all that a run has come to, as what can be compared."""
    named = [(type(callback).__name__, callback) for callback in trainer.callbacks]
    return {
        "state": [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(zoo.host(trainer.state))],
        "progress": trainer.progress.to_json(),
        "stop": (trainer.stop_reason, trainer.stop_detail),
        "callbacks": [(name, callback.state_dict()) for name, callback in named],
        "rows": probes.all_rows(folder),
    }


if __name__ == "__main__":
    main()
