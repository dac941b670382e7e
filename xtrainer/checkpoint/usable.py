"""Which checkpoint can be trusted? The newest, or the best, of which every byte is what it was."""

import time
from collections.abc import Collection
from pathlib import Path
from typing import Literal, NamedTuple

from xtrainer.checkpoint.commit import problems_of
from xtrainer.checkpoint.metadata import (
    best_steps,
    checked_step,
    find_step,
    looks_like_step,
    nothing_usable,
    root_of,
    step_of,
)
from xtrainer.errors import CheckpointCorruptError

_LOOKS, _PAUSE_S = 3, 0.1


class Choice(NamedTuple):
    """A checkpoint that was verified.

    Attributes:
        folder: Of the step.
        damaged: What is wrong with those that would have been chosen before it, by their folder.
    """

    folder: Path
    damaged: dict[Path, list[str]]


def choose_usable(
    folder: Path, which: int | Literal["best", "latest"] = "latest", skip: Collection[int] = ()
) -> Choice:
    """Returns the newest step, or the best, whose files are all as they were written.

    Args:
        folder: A run folder, its ``checkpoints`` folder, or a step folder itself.
        which: A step, ``"latest"`` or ``"best"``.
        skip: Steps that are not to be chosen.

    Raises:
        CheckpointNotFoundError: If there is no such step.
        CheckpointCorruptError: If the one that was asked for is damaged.
        NoUsableCheckpointError: If there are steps, and all are damaged.
        CheckpointError: If ``which`` is something else.
    """
    which = checked_step(which)
    folder = Path(folder).absolute()
    if looks_like_step(folder) or isinstance(which, int):
        return Choice(_exactly(folder, which), {})
    root = root_of(folder)
    damaged: dict[Path, list[str]] = {}
    for path in _candidates(root, which):
        if int(path.name) in skip:
            continue
        problems = settled_problems(path)
        if not problems:
            return Choice(path, damaged)
        damaged[path] = problems
    if which == "best":
        find_step(root, which)  # raises where no step has a metric
    raise nothing_usable(root, damaged)


def settled_problems(path: Path) -> list[str]:
    """Looks again where a file is missing: on a network's disk it may only be late."""
    problems = problems_of(path)
    for _ in range(_LOOKS):
        if not any("is missing" in problem for problem in problems):
            break
        time.sleep(_PAUSE_S)
        problems = problems_of(path)
    return problems


def _exactly(folder: Path, which: int | Literal["best", "latest"]) -> Path:
    path = folder if looks_like_step(folder) and which in ("best", "latest") else None
    if path is None:
        root = root_of(folder)
        path = root / str(which)
        if not looks_like_step(path):
            path = find_step(folder, which)
    problems = settled_problems(path)
    if problems:
        raise CheckpointCorruptError(
            f"{path}: found a damaged checkpoint: {'; '.join(problems[:5])}. Use another step.",
            step_of(path),
        )
    return path


def _candidates(root: Path, which: Literal["best", "latest"]) -> list[Path]:
    if which == "best":
        return [root / str(step) for step in best_steps(root)]
    paths = [path for path in root.iterdir() if looks_like_step(path)] if root.is_dir() else []
    return sorted(paths, key=lambda path: int(path.name), reverse=True)
