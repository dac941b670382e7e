"""How does a model learn from data that come while it is used? By one pass that is no epoch."""

import contextlib
from collections.abc import Iterator

from xtrainer.callbacks import ModelCheckpoint
from xtrainer.data import LoaderSource
from xtrainer.loop import Loaders, OpenRows, Plan
from xtrainer.trainer import run
from xtrainer.trainer.folders import held_folders
from xtrainer.trainer.view import TrainerView
from xtrainer.types import HostMetrics


def train_online(trainer: TrainerView, source: LoaderSource) -> HostMetrics:
    """Trains for one pass over a loader; returns the means, see ``TrainerModule.train_online``."""
    every, progress = trainer.log_every_n_steps, trainer.progress
    plan = Plan(progress.epochs_done + 1, None, None, every, 0, 0, online_from=progress.step)
    source.new_pass()
    with held_folders(trainer), _outside_of_epochs(trainer):
        return run.train(trainer, plan, Loaders(source), None)["online"]


@contextlib.contextmanager
def _outside_of_epochs(trainer: TrainerView) -> Iterator[None]:
    """Keeps from a pass what belongs to the epoch under way, and puts it back."""
    progress, callbacks, saved = trainer.progress, trainer.callbacks, trainer.restored_rows
    epoch = (progress.epochs_done, progress.step_in_epoch, progress.batch_rows)
    progress.step_in_epoch = 0
    trainer.callbacks = [c for c in callbacks if not isinstance(c, ModelCheckpoint)]
    # The row under way is not continued; those that the loggers have are. Where the run begins
    # here, later rows in its folder are those of an earlier one.
    loggers = {} if not trainer.is_own_state else None if saved is None else saved.loggers
    trainer.restored_rows = OpenRows(None, loggers)
    try:
        yield
    finally:
        trainer.callbacks, trainer.setback = callbacks, None
        progress.epochs_done, progress.step_in_epoch, progress.batch_rows = epoch
