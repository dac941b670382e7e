"""How does a run go back? To the last good checkpoint, and past the batches it went wrong with.

The method is that of PaLM (Chowdhery et al., 2022, section 5.1): a spike of the loss comes of a
state and a batch together; going back and leaving the batches out has helped where it was tried.
Which batches those are is kept in ``Progress.rollbacks``, and so in every later checkpoint.
"""

import logging

from xtrainer.callbacks import ModelCheckpoint
from xtrainer.checkpoint import list_steps
from xtrainer.errors import CheckpointNotFoundError, ConfigError, NoUsableCheckpointError
from xtrainer.launch import broadcast
from xtrainer.loop import Loaders, Setback
from xtrainer.state import Rollback
from xtrainer.trainer.rate import set_rate
from xtrainer.trainer.resize import begin_with_size, changes_batch_size
from xtrainer.trainer.resume import load_usable
from xtrainer.trainer.view import TrainerView

_LOG = logging.getLogger(__name__)


def prepare_rollbacks(trainer: TrainerView, loaders: Loaders) -> None:
    """Makes sure that the run can go back from its first step on; saves it where nothing is saved.

    Raises:
        ConfigError: If nothing is saved that a run can go back to, or the data cannot be read
            again.
    """
    if trainer.trainer_config.nonfinite_policy != "rollback":
        return
    callback = _saving(trainer)
    if loaders.train.is_one_shot:
        raise ConfigError(
            "nonfinite_policy: found 'rollback' with a training loader that is an iterator, "
            "expected one that can be read again. Pass a loader with an __iter__ of its own."
        )
    callback.save_start()


def _saving(trainer: TrainerView) -> ModelCheckpoint:
    for callback in trainer.callbacks:
        if isinstance(callback, ModelCheckpoint):
            config = callback.config
            if config.save_optimizer_state and config.save_dataloader_state:
                return callback
    raise ConfigError(
        "nonfinite_policy: found 'rollback' and no checkpoints to go back to, expected a "
        "ModelCheckpointConfig among the callbacks that saves the state of the optimizer and the "
        "position of the loader, as it does by default."
    )


def roll_back(trainer: TrainerView, loaders: Loaders) -> bool:
    """Puts a run that has gone wrong where it was before, if it may and there is such a place.

    Returns:
        Whether training is to go on from there.

    Raises:
        CheckpointError: If a save under way has failed.
    """
    config, setback = trainer.trainer_config, trainer.setback
    trainer.setback = None
    if setback is None or config.nonfinite_policy != "rollback":
        return False
    done = list(trainer.progress.rollbacks)
    if len(done) >= config.max_rollbacks:
        trainer.stop_detail += f" The run had gone back {len(done)} times already (max_rollbacks)."
        return False
    callback = _saving(trainer)
    callback.finish_save()
    if not _load_before(trainer, callback, setback):
        return False
    to_step = trainer.progress.step
    trainer.progress.rollbacks = [
        *done, Rollback(setback.last, to_step, setback.text, setback.batches)
    ]  # fmt: skip
    set_rate(trainer)
    trainer.sources.of(loaders.train.loader, "train")  # puts it where the checkpoint says
    if changes_batch_size(trainer.trainer_config):
        begin_with_size(trainer)
    trainer.stop_reason, trainer.stop_detail = None, ""
    return True


def _load_before(trainer: TrainerView, callback: ModelCheckpoint, setback: Setback) -> bool:
    steps = broadcast(list_steps(callback.folder), f"steps in {callback.folder}")
    try:
        later = {step for step in steps if step >= setback.first}
        load_usable(trainer, callback.folder, "latest", own=True, skip=later)
    except (CheckpointNotFoundError, NoUsableCheckpointError):
        trainer.stop_detail += (
            f" There is no checkpoint from before step {setback.first} to go back to: keep more of "
            "them (max_to_keep), or save less often."
        )
        return False
    return True


def tell_of_rollback(trainer: TrainerView) -> None:
    """Tells the log, the loggers and the callbacks of the newest return; rows are back by then."""
    progress, limit = trainer.progress, trainer.trainer_config.max_rollbacks
    newest, step = progress.rollbacks[-1], progress.step
    text = (
        f"{newest.reason} Training goes back from step {newest.from_step} to step {step} and "
        f"leaves out {len(newest.skipped)} batches (return {len(progress.rollbacks)} of at most "
        f"{limit})."
    )
    _LOG.warning("%s", text)
    trainer.logger.log_text("rollback", text, step)
    trainer.journal.rollback(newest)
    trainer.notify("on_rollback", step)
