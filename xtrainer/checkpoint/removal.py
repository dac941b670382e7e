"""What happens to folders that are no steps any more? Moved aside, or removed, never half.

``7.2.saving`` is being written by the second start of the run or was left by a killed save;
``7.removed`` is about to go; ``corrupt-7`` was damaged and ``superseded-7`` belongs to a course of
training that was left: neither is looked at again.
"""

import logging
import os
import re
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from xtrainer.checkpoint.background import Background
from xtrainer.checkpoint.commit import reached
from xtrainer.checkpoint.durable import rename

_log = logging.getLogger(__name__)
_LEFT = re.compile(r"(0|[1-9]\d*)(\.[1-9]\d*)?\.(saving|removed)")
_SUPERSEDED = "superseded"
_LEFT_LIMIT_S, _LEFT_PAUSE_S = 2.0, 0.05


def saving_folder(folder: Path, step: int, attempt: int) -> Path:
    """Returns where a start of the run writes a step before it is whole.

    Each start has its own: what an earlier one still writes or removes harms no save of a later.
    """
    return folder / f"{step}.{attempt}.saving"


def clean(folder: Path) -> None:
    """Removes what killed saves and interrupted removals left, and nothing else."""
    for path in folder.iterdir():
        if _LEFT.fullmatch(path.name):
            remove_tree(path)


class Remover:
    """Removes steps that are not kept any more.

    The files go in the background, which for large ones takes as long as some steps of training. A
    step that cannot be removed, as where something is mounted in it, is tried again with the next.
    """

    def __init__(self) -> None:
        self._stuck: set[Path] = set()
        self._thread = Background("remove-checkpoint")

    def remove(self, steps: Iterable[Path]) -> None:
        """Removes steps, and those that could not be removed before."""
        for path in [*sorted(self._stuck), *steps]:
            self._remove(path)

    def _remove(self, path: Path) -> None:
        """Renames a step, so that a kill in between leaves no half one, and removes its files."""
        removed = path.with_name(f"{path.name}.removed")
        reached("removing")
        try:
            rename(path, removed)
        except OSError as error:
            if path not in self._stuck:
                _log.warning("The old step %s could not be removed, and stays: %s", path, error)
            self._stuck.add(path)
        else:
            self._stuck.discard(path)
            self._thread.submit(remove_tree, removed)
        reached("removed")

    def remove_superseded(self, folder: Path, newest: int) -> None:
        """Removes superseded steps that the present course has passed."""
        try:
            found = list(folder.glob(f"{_SUPERSEDED}-*"))
        except OSError as error:  # as where a process has too many files open
            _log.warning("%s could not be looked through for old steps: %s", folder, error)
            return
        for path in found:
            step = path.name.split("-")[1]
            if step.isdecimal() and int(step) <= newest:
                self._thread.submit(remove_tree, path)

    def close(self, timeout_s: float) -> None:
        """Waits until all files are gone; what is left then goes when the folder is next opened."""
        if not self._thread.close(timeout_s):
            _log.warning("Old steps could not be removed within %g s.", timeout_s)


def remove_tree(path: Path) -> None:
    """Removes a folder and says so where it cannot; a link and a file are left."""
    try:
        if path.is_symlink() or not path.is_dir():
            return
        shutil.rmtree(path)
    except OSError as error:
        _log.warning("%s could not be removed: %s", path, error)


def remove_left(paths: list[Path]) -> None:
    """Removes folders of failed saves until none of them comes back, and forgets them.

    Of the threads that write arrays only the first error is known: others may still be writing, and
    make the folder anew.
    """
    deadline = time.monotonic() + _LEFT_LIMIT_S
    while paths and time.monotonic() < deadline:
        for path in paths:
            remove_tree(path)
        time.sleep(_LEFT_PAUSE_S)
        paths[:] = [path for path in paths if os.path.lexists(path)]


def set_aside(path: Path, problems: list[str]) -> None:
    """Renames a damaged step to ``corrupt-STEP``, and says what is wrong with it."""
    _move(path, "corrupt")
    _log.error("%s is damaged and was set aside: %s", path, "; ".join(problems[:5]))


def supersede(path: Path) -> None:
    """Renames a step of a course that was left to ``superseded-STEP``."""
    _move(path, _SUPERSEDED)
    _log.warning("%s belongs to a course of training that is left: set aside", path)


def _move(path: Path, prefix: str) -> None:
    new = path.with_name(f"{prefix}-{path.name}")
    number = 1
    while os.path.lexists(new):
        number += 1
        new = path.with_name(f"{prefix}-{path.name}-{number}")
    rename(path, new)
