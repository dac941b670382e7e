"""Which steps does a folder hold, and what do they say of themselves? Reads; never writes."""

import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from xtrainer.checkpoint.commit import COMMIT_FILE, FORMAT_VERSION, quick_problems, read_json
from xtrainer.checkpoint.durable import write_json
from xtrainer.checkpoint.items import float_from_json, float_to_json
from xtrainer.checkpoint.meta import meta_problems
from xtrainer.counts import MAX_COUNT, as_int, wanted_count
from xtrainer.errors import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointNotFoundError,
    NoUsableCheckpointError,
)
from xtrainer.types import JSON

_log = logging.getLogger(__name__)
MonitorMode = Literal["min", "max"]

CHECKPOINTS_FOLDER = "checkpoints"
"""Where a run folder keeps its steps."""

META_FILE = "meta.json"
"""All of a step that is not an array."""
RANK_FILE = "rank.json"
"""A metric that became known after its step was saved."""
RESUME_STEPS = 2
"""The newest steps that are always kept: one, and one to fall back to."""
METRIC_KEY, MODE_KEY, STEP_KEY = "metric", "monitor_mode", "step"


def step_of(path: Path) -> int | None:
    """Returns the step a path is named after; None for names such as ``005``, ``-1``, ``5.tmp``."""
    name = path.name
    return int(name) if name.isascii() and name.isdigit() and name == str(int(name)) else None


def is_step(path: Path) -> bool:
    """Says whether a path is a committed step: a real folder, named by its number, sizes right."""
    return looks_like_step(path) and not quick_problems(path)


def looks_like_step(path: Path) -> bool:
    """Says whether a path was a committed step once: it has a record, and the name of a step."""
    return (
        step_of(path) is not None
        and path.is_dir()
        and not path.is_symlink()
        and os.path.lexists(path / COMMIT_FILE)
    )


def list_steps(folder: Path) -> list[int]:
    """Returns the committed steps of a folder in ascending order; none where there is no folder."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if is_step(path))


def read_meta(step_folder: Path) -> dict[str, JSON]:
    """Returns all of a step that is not an array, as it was saved.

    Raises:
        CheckpointNotFoundError: If the folder is not a committed step.
        CheckpointError: If the file is damaged, or of a newer format than this xtrainer reads.
    """
    step_folder = require_step(step_folder)
    meta = read_json(step_folder / META_FILE)
    problems = meta_problems(meta)
    if problems:
        raise CheckpointError(
            f"{step_folder}: {META_FILE} is not what was saved: {'; '.join(problems[:5])}. Use "
            "another step."
        )
    return meta


def require_step(step_folder: Path) -> Path:
    """Returns the absolute path of a committed step.

    Raises:
        CheckpointNotFoundError: If it is not one.
        CheckpointCorruptError: If it is one that is damaged.
        CheckpointError: If it is of another format.
    """
    step_folder = Path(step_folder).absolute()
    if is_step(step_folder):
        return step_folder
    if looks_like_step(step_folder):
        raise CheckpointCorruptError(
            f"{step_folder}: found a damaged checkpoint: "
            f"{'; '.join(quick_problems(step_folder)[:5])}. Use another step.",
            step_of(step_folder),
        )
    if format_of(step_folder) is not None:
        raise CheckpointError(_old_format(step_folder))
    raise CheckpointNotFoundError(
        f"{step_folder}: found no committed checkpoint, expected a folder named by its step "
        f"that holds {COMMIT_FILE}. {_whats_there(step_folder.parent)}"
    )


def format_of(step_folder: Path) -> int | None:
    """Returns the format of a step's folder, None for what is no step of any format."""
    if step_of(step_folder) is None or step_folder.is_symlink() or not step_folder.is_dir():
        return None
    if os.path.lexists(step_folder / COMMIT_FILE):
        return FORMAT_VERSION
    return 1 if (step_folder / "meta" / "metadata").is_file() else None


def _old_format(step_folder: Path) -> str:
    return (
        f"{step_folder}: found a checkpoint of format {format_of(step_folder)}, expected "
        f"{FORMAT_VERSION}. Call xtrainer.checkpoint.migrate({str(step_folder.parent)!r}) once."
    )


def read_metric(step_folder: Path, mode: MonitorMode | None = None) -> float | None:
    """Returns the monitored metric of a step, None where it has none.

    Args:
        step_folder: The step.
        mode: If given, a metric that was monitored with the other mode counts as none, since the
            two cannot be compared.

    Raises:
        CheckpointError: If the metadata are damaged.
    """
    record = {**read_meta(step_folder), **_read_rank(step_folder)}
    if mode is not None and record.get(MODE_KEY) != mode:
        return None
    try:
        return float_from_json(record.get(METRIC_KEY))
    except ValueError as error:
        raise CheckpointError(f"{step_folder}: {METRIC_KEY}: {error}. Use another step.") from error


def read_metrics_of_steps(folder: Path, mode: MonitorMode | None) -> dict[int, float | None]:
    """Returns the metric of each step in a folder; None, and a warning, where it is damaged."""
    found: dict[int, float | None] = {}
    for step in list_steps(folder):
        try:
            found[step] = read_metric(folder / str(step), mode)
        except CheckpointError as error:
            _log.warning("Step %d counts as one without a metric: %s", step, error)
            found[step] = None
    return found


def write_rank(step_folder: Path, metric: float, mode: MonitorMode | None) -> None:
    """Keeps the metric of a step that was saved before it was known; whole or not at all."""
    write_json(step_folder / RANK_FILE, {METRIC_KEY: float_to_json(metric), MODE_KEY: mode})


def _read_rank(step_folder: Path) -> dict[str, JSON]:
    try:
        return read_json(step_folder / RANK_FILE)
    except CheckpointNotFoundError:
        return {}


def best_of(metrics: Mapping[int, float | None], mode: MonitorMode | None) -> list[int]:
    """Returns the steps with a finite metric, the best first; of equal ones the earlier first.

    Example:
        >>> best_of({1: 0.5, 2: float("nan"), 3: None, 4: 0.25}, "min")
        [4, 1]
    """
    if mode is None:
        return []
    sign = 1.0 if mode == "min" else -1.0
    ranked = [
        (sign * metric, step)
        for step, metric in metrics.items()
        if metric is not None and math.isfinite(metric)
    ]
    return [step for _, step in sorted(ranked)]


def steps_to_keep(
    metrics: Mapping[int, float | None], max_to_keep: int | None, mode: MonitorMode | None
) -> set[int]:
    """Returns which steps stay: the newest two to go on from, and the ``max_to_keep`` best.

    Steps without a finite metric take the places that no finite one claims, the newer first.

    Args:
        metrics: The monitored metric of every step.
        max_to_keep: None keeps all.
        mode: None ranks by newness alone.

    Example:
        >>> sorted(steps_to_keep({1: 0.1, 2: 0.3, 3: float("nan"), 4: 0.2}, 1, "min"))
        [1, 3, 4]
    """
    if max_to_keep is None or not metrics:
        return set(metrics)
    ranked = best_of(metrics, mode)
    others = sorted(metrics.keys() - set(ranked), reverse=True)
    newest = sorted(metrics)[-RESUME_STEPS:]
    return {*newest, *(ranked + others)[:max_to_keep]}


def checked_step(step_idx: Any) -> int | Literal["best", "latest"]:
    """Returns what was asked for: a step, as a Python integer, ``"best"`` or ``"latest"``.

    Raises:
        CheckpointError: If it is something else.

    Example:
        >>> checked_step(7), checked_step("best")
        (7, 'best')
    """
    if isinstance(step_idx, str) and step_idx in ("best", "latest"):
        return step_idx
    if wanted_count(step_idx):
        raise CheckpointError(
            f"step_idx: found {step_idx!r}, expected a step, 'best' or 'latest'. Steps are whole "
            f"numbers from 0 to {MAX_COUNT}."
        )
    return as_int(step_idx)


def find_step(folder: Path, step_idx: int | Literal["best", "latest"] = "latest") -> Path:
    """Returns the folder of one step.

    Args:
        folder: A run folder, its ``checkpoints`` folder, or a step folder itself.
        step_idx: A step, ``"latest"``, or ``"best"`` by the metric the run monitored. A step
            folder is found by its own number, ``"latest"`` and ``"best"`` alike.

    Raises:
        CheckpointNotFoundError: If there is no such step; lists what is there.
        CheckpointError: If ``step_idx`` is something else, or the folder is a link.
    """
    step_idx = checked_step(step_idx)
    folder = Path(folder).absolute()
    if is_step(folder):
        if isinstance(step_idx, int) and step_idx != step_of(folder):
            raise CheckpointNotFoundError(
                f"{folder}: found step {folder.name}, expected step {step_idx}. Give the folder "
                "that holds both, or leave step_idx out."
            )
        return folder
    root = root_of(folder)
    steps = list_steps(root)
    if not steps:
        raise nothing_usable(root)
    if step_idx == "best":
        ranked = best_steps(root)
        if not ranked:
            raise CheckpointNotFoundError(
                f"{root}: found no step with a finite monitored metric among {_numbers(steps)}. "
                "Use step_idx='latest' or one of these steps."
            )
        return root / str(ranked[0])
    if step_idx == "latest":
        return root / str(steps[-1])
    if step_idx not in steps:
        raise CheckpointNotFoundError(
            f"{root}: found no step {step_idx}, expected one of {_numbers(steps)}."
        )
    return root / str(step_idx)


def root_of(folder: Path) -> Path:
    """Returns the folder that the steps of a run are in: ``checkpoints``, or the folder itself.

    Raises:
        CheckpointError: If ``checkpoints`` is a link: steps elsewhere would be taken for its own,
            and be removed when they are old.
    """
    root = folder / CHECKPOINTS_FOLDER
    if root.is_symlink():
        raise CheckpointError(
            f"{root}: found a link, expected a folder. Name the folder that it leads to, in "
            "ModelCheckpointConfig(log_path=...) where it is to be written."
        )
    return root if root.is_dir() else folder


def nothing_usable(
    root: Path, damaged: Mapping[Path, Sequence[str]] | None = None
) -> CheckpointError:
    """Returns the error that says why a folder has no usable step.

    Args:
        root: The folder.
        damaged: What is wrong with the steps in it; found by their sizes where None.
    """
    paths = sorted(root.iterdir()) if root.is_dir() else []
    if damaged is None:
        damaged = {path: quick_problems(path) for path in paths if looks_like_step(path)}
    if damaged:
        lines = [f"  {path.name}: {'; '.join(damaged[path][:3])}" for path in list(damaged)[:20]]
        return NoUsableCheckpointError(
            f"{root}: found {len(damaged)} checkpoints and none that is usable, expected at least "
            "one. Nothing was changed. Repair one of them, or move the folder away to begin "
            "anew:\n" + "\n".join(lines)
        )
    old = [path for path in paths if (format_of(path) or FORMAT_VERSION) < FORMAT_VERSION]
    if old:
        return CheckpointError(_old_format(old[-1]))
    return CheckpointNotFoundError(f"{root}: found no checkpoint. {_whats_there(root)}")


def best_steps(root: Path) -> list[int]:
    """Returns the steps with a finite metric, the best first, by the mode of the newest of them.

    A step whose metric cannot be read is none of them.
    """
    mode: MonitorMode | None = None
    metrics: dict[int, float | None] = {}
    for step in reversed(list_steps(root)):
        try:
            mode = mode or read_meta(root / str(step)).get(MODE_KEY)
            metrics[step] = read_metric(root / str(step), mode)
        except CheckpointError:
            continue
    return best_of(metrics, mode)


def _whats_there(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder} is {'a file' if folder.exists() else 'not there'}; check the path."
    names = sorted(path.name for path in folder.iterdir())
    if not names:
        return f"{folder} is empty; check the path."
    steps = list_steps(folder)
    entries = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    return f"{folder} holds: {entries}; its committed steps: {_numbers(steps)}."


def _numbers(steps: Iterable[int]) -> str:
    return ", ".join(map(str, steps)) or "none"
