"""Where does a run go on? At the newest checkpoint that can be trusted, or as it is told."""

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal

from xtrainer.callbacks import Callback, ModelCheckpoint
from xtrainer.checkpoint import set_aside, steps_to_leave_out
from xtrainer.counts import MAX_COUNT, as_int, wanted_count
from xtrainer.errors import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointNotFoundError,
    ConfigError,
    NoUsableCheckpointError,
)
from xtrainer.launch import broadcast, is_main_process
from xtrainer.loop import OpenRows
from xtrainer.trainer.saving import checkpoint_folder, load_step
from xtrainer.trainer.shared import StepIndex, choose_step
from xtrainer.trainer.view import TrainerView
from xtrainer.trainer.watched import watched

_LOG = logging.getLogger(__name__)

Resume = Literal["auto", "must", "never"] | int | str | Path
"""Where a run goes on, see :meth:`xtrainer.TrainerModule.train_model`."""


def resume_run(trainer: TrainerView, resume: Resume) -> None:
    """Puts a trainer where its run is to go on.

    Raises:
        ConfigError: If ``resume`` is nothing that can be followed.
        CheckpointNotFoundError: If there must be a checkpoint, and there is none.
        NoUsableCheckpointError: If there are checkpoints, and none can be used.
    """
    if isinstance(resume, str) and resume.isdecimal() and len(resume) < 20:
        resume = int(resume)  # as a command line gives it
    resume = as_int(resume)
    if not isinstance(resume, str | Path) and wanted_count(resume):
        raise ConfigError(
            f"resume: found {resume!r}, expected 'auto', 'must', 'never', a step or a folder. "
            f"Steps are whole numbers from 0 to {MAX_COUNT}."
        )
    if resume != "never" and not (resume == "auto" and trainer.is_own_state):
        with watched(trainer):
            _load(trainer, resume)
    if not trainer.is_own_state:
        # The run begins here: later rows in its folder are those of an earlier one.
        run = None if trainer.restored_rows is None else trainer.restored_rows.run
        trainer.restored_rows = OpenRows(run, {})


def _load(trainer: TrainerView, resume: Resume) -> None:
    if isinstance(resume, int):
        load_usable(trainer, checkpoint_folder(trainer), resume, own=True)
        return
    if resume not in ("auto", "must"):
        load_usable(trainer, Path(resume).expanduser(), "latest", own=False)
        return
    folders = resume_folders(trainer.callbacks)
    if len(folders) > 1:  # only then is one looked through before it is loaded
        newest = [(found, folder) for folder in folders if (found := _newest(folder)) is not None]
        folders = [max(newest)[1]] if newest else folders[:1]
    try:
        for folder in folders:
            _load_newest(trainer, folder)
            return
    except CheckpointNotFoundError:
        pass
    if resume == "must":
        raise CheckpointNotFoundError(
            "resume='must': found no checkpoint in "
            f"{[str(folder) for folder in resume_folders(trainer.callbacks)]}, expected one to go "
            "on from. Check the run folder, or use resume='auto'."
        )


def resume_folders(callbacks: Sequence[Callback]) -> list[Path]:
    """Returns the folders of checkpoints that a run can go on from."""
    return [
        callback.folder
        for callback in callbacks
        if isinstance(callback, ModelCheckpoint) and callback.config.save_optimizer_state
    ]


def _load_newest(trainer: TrainerView, folder: Path) -> None:
    """Loads the newest step, but rather another than one that has ended the last starts at once."""
    left_out = broadcast(sorted(steps_to_leave_out(folder)), f"failed starts in {folder}")
    if left_out:
        try:
            load_usable(trainer, folder, "latest", own=True, skip=left_out)
            _LOG.error(
                "%s: the last starts have failed with step %d before they took a step, so this one "
                "goes on from step %d.", folder, left_out[0], trainer.progress.step,
            )  # fmt: skip
            return
        except (CheckpointNotFoundError, NoUsableCheckpointError):
            pass  # better this one than none
    load_usable(trainer, folder, "latest", own=True)


def _newest(folder: Path) -> int | None:
    """Returns the newest usable step, None where there is no checkpoint at all."""
    try:
        return int(choose_step(folder, "latest")[0].name)
    except CheckpointNotFoundError:
        return None


def load_usable(
    trainer: TrainerView,
    folder: Path,
    which: StepIndex,
    own: bool,
    load_optimizer: bool = True,
    skip: Collection[int] = (),
) -> Path:
    """Loads the newest or best checkpoint that is whole, or exactly the step that was asked for.

    Args:
        trainer: Nothing of it changes before all of a checkpoint was read.
        folder: Of the run, its checkpoints or one step.
        which: A step, ``"best"`` or ``"latest"``.
        own: Whether the run is this trainer's: it goes on with its rows, and damaged checkpoints
            are set aside.
        load_optimizer: Take the state of training too.
        skip: Steps that are not to be loaded.

    Returns:
        The step's folder.

    Raises:
        CheckpointError: If it does not fit the trainer.
        CheckpointNotFoundError: If there is no such checkpoint.
        NoUsableCheckpointError: If there are checkpoints, and none can be used.
    """
    bad: dict[Path, list[str]] = {}
    skip = set(skip)
    while True:
        try:
            step_folder, damaged = choose_step(folder, which, skip)
        except NoUsableCheckpointError as error:
            for path, problems in bad.items():
                error.add_note(f"Besides, {path}: {problems[0]}")
            raise
        except CheckpointNotFoundError as error:
            if bad:  # the only ones there were had to be skipped
                raise NoUsableCheckpointError(
                    "\n".join(problems[0] for problems in bad.values())
                ) from error
            raise
        bad |= damaged
        try:
            load_step(trainer, step_folder, load_optimizer, own)
        except CheckpointCorruptError as error:
            if isinstance(which, int) or step_folder == folder:
                raise
            bad[step_folder] = [str(error)]
            skip.add(int(step_folder.name))
            continue
        _report(bad, own)
        return step_folder


def _report(damaged: dict[Path, list[str]], own: bool) -> None:
    for path, problems in damaged.items():
        if not own:
            _LOG.warning("%s is damaged and was passed over: %s", path, "; ".join(problems[:5]))
        elif is_main_process():
            try:
                set_aside(path, problems)
            except OSError as error:
                raise CheckpointError(
                    f"{path}: found a damaged checkpoint, which could not be set aside ({error}). "
                    "Move it away."
                ) from error
