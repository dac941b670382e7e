"""Which folders does a run hold while it trains? Its own, and those of its checkpoints."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from xtrainer.callbacks import ModelCheckpoint
from xtrainer.launch import gather_results, is_main_process
from xtrainer.launch.folder_lock import FolderLock
from xtrainer.trainer.view import TrainerView

_LOG = logging.getLogger(__name__)


@contextlib.contextmanager
def held_folders(trainer: TrainerView) -> Iterator[None]:
    """Keeps other runs out of the folders that a trainer writes to; the main process holds them.

    Raises:
        FolderInUseError: If another run trains there.
        PeerError: If that is so on the main process, and this is another one.
    """
    with contextlib.ExitStack() as locks:
        gather_results(lambda: _hold(trainer, locks), "locks of folders")
        yield


def _hold(trainer: TrainerView, locks: contextlib.ExitStack) -> None:
    for folder in written_folders(trainer) if is_main_process() else ():
        try:
            locks.enter_context(FolderLock(folder))
        except OSError as error:  # what it means for the run is told by what writes there
            _LOG.warning("%s could not be locked: %s", folder, error)


def written_folders(trainer: TrainerView) -> list[Path]:
    """Returns the run folder, and the folders of checkpoints that lie elsewhere."""
    found = [] if trainer.log_path is None else [trainer.log_path.resolve()]
    for callback in trainer.callbacks:
        if isinstance(callback, ModelCheckpoint):
            folder = callback.folder.resolve()
            if not any(folder.is_relative_to(other) for other in found):
                found.append(folder)
    return found
