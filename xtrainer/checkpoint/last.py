"""Which checkpoint has come furthest, of one run or of several in a folder?"""

import logging
from collections.abc import Iterator
from pathlib import Path

from xtrainer.checkpoint.metadata import looks_like_step, nothing_usable, read_meta, root_of
from xtrainer.checkpoint.usable import settled_problems
from xtrainer.errors import CheckpointError, CheckpointNotFoundError

_LOG = logging.getLogger(__name__)


def find_last_checkpoint(root: str | Path | None) -> Path | None:
    """Returns the folder of the checkpoint that has come furthest, by its epoch and then its step.

    Every byte of it was compared with its checksum. Damaged ones that come before it are passed
    over, with a warning. Nothing is changed; several processes each look for themselves.

    Args:
        root: A run folder, its ``checkpoints``, one step's folder, or a folder of several runs.

    Returns:
        A step's folder, as ``load_pretrained_model`` and ``load_from_checkpoint`` take it; None
        where there is no checkpoint, no folder, or None was given.

    Raises:
        NoUsableCheckpointError: If there are checkpoints, and all are damaged.
        CheckpointError: If there are only checkpoints of an older format.

    Example:
        >>> find_last_checkpoint(None) is None, find_last_checkpoint("/nowhere/runs") is None
        (True, True)
    """
    if root is None:
        return None
    folder = Path(root).expanduser().absolute()
    damaged: dict[Path, list[str]] = {}
    ranked = []
    for path in _steps_below(folder, damaged):
        try:
            ranked.append((_epochs_done(path), int(path.name), path))
        except CheckpointError as error:
            damaged[path] = [str(error)]
    for _, _, path in sorted(ranked, reverse=True):
        problems = settled_problems(path)
        if not problems:
            for bad, reasons in damaged.items():
                _LOG.warning("%s is damaged and was passed over: %s", bad, "; ".join(reasons[:5]))
            return path
        damaged[path] = problems
    if damaged:
        raise nothing_usable(folder, damaged)
    for each in (folder, *_folders_in(folder)):
        error = nothing_usable(root_of(each))
        if not isinstance(error, CheckpointNotFoundError):
            raise error
    return None


def _steps_below(folder: Path, damaged: dict[Path, list[str]]) -> Iterator[Path]:
    """Yields the steps of a run or, where the folder is none, of the runs in it."""
    if looks_like_step(folder):
        yield folder
        return
    own = list(_steps_in(root_of(folder)))
    yield from own
    for run in () if own else _folders_in(folder):
        try:
            yield from _steps_in(root_of(run))
        except CheckpointError as error:  # a link, that leads out of the folder
            damaged[run] = [str(error)]


def _steps_in(root: Path) -> Iterator[Path]:
    return filter(looks_like_step, _folders_in(root))


def _folders_in(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []


def _epochs_done(step_folder: Path) -> int:
    epochs = read_meta(step_folder)["progress"].get("epochs_done")
    return epochs if type(epochs) is int else 0
