"""Which steps does a folder hold, and what do they say of themselves? Reads; never writes."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from xtrainer.checkpoint.backend import COMMIT_FILE, META_FILE, META_ITEM, RANK_FILE, STATE_ITEM
from xtrainer.checkpoint.items import FORMAT_VERSION, META_KEYS, float_from_json, float_to_json
from xtrainer.errors import CheckpointError, CheckpointNotFoundError
from xtrainer.types import JSON

MonitorMode = Literal["min", "max"]

CHECKPOINTS_FOLDER = "checkpoints"
"""Where a run folder keeps its steps."""

METRIC_KEY, MODE_KEY, STEP_KEY = "metric", "monitor_mode", "step"


def step_of(path: Path) -> int | None:
    """Returns the step a path is named after; None for names such as ``005``, ``-1``, ``5.tmp``."""
    name = path.name
    return int(name) if name.isascii() and name.isdigit() and name == str(int(name)) else None


def is_step(path: Path) -> bool:
    """Says whether a path is a committed step: a real folder, whole, named by its number."""
    needed = (COMMIT_FILE, f"{STATE_ITEM}/{COMMIT_FILE}", f"{META_ITEM}/{COMMIT_FILE}")
    return (
        step_of(path) is not None
        and path.is_dir()
        and not path.is_symlink()
        and all((path / name).is_file() for name in needed)
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
    path = step_folder / META_ITEM / META_FILE
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{step_folder}: {path.name} of the checkpoint cannot be read ({error}), expected "
            "JSON. Use another step."
        ) from error
    version = meta.get("format_version") if isinstance(meta, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise CheckpointError(
            f"{step_folder}: found format_version {version}, expected at most {FORMAT_VERSION}. "
            "It was written by a newer xtrainer; install that one."
        )
    if version != FORMAT_VERSION or not META_KEYS <= meta.keys():
        raise CheckpointError(
            f"{step_folder}: found metadata with format_version {version!r} and without some of "
            f"{sorted(META_KEYS)}, expected all of them. Use another step."
        )
    return meta


def require_step(step_folder: Path) -> Path:
    """Returns the absolute path of a committed step.

    Raises:
        CheckpointNotFoundError: If it is not one.
    """
    step_folder = Path(step_folder).absolute()
    if not is_step(step_folder):
        raise CheckpointNotFoundError(
            f"{step_folder}: found no committed checkpoint, expected a folder named by its step "
            f"that holds {COMMIT_FILE}. {_whats_there(step_folder.parent)}"
        )
    return step_folder


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


def write_rank(step_folder: Path, metric: float, mode: MonitorMode | None) -> None:
    """Keeps the metric of a step that was saved before it was known; whole or not at all."""
    path = step_folder / RANK_FILE
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps({METRIC_KEY: float_to_json(metric), MODE_KEY: mode}))
    os.replace(temporary, path)


def _read_rank(step_folder: Path) -> dict[str, JSON]:
    try:
        record = json.loads((step_folder / RANK_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{step_folder}: {RANK_FILE} cannot be read ({error}), expected JSON. Remove it, or "
            "use another step."
        ) from error
    return record if isinstance(record, dict) else {}


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
    """Returns which steps stay: the newest, and the ``max_to_keep`` best.

    Steps without a finite metric take the places that no finite one claims, the newer first.

    Args:
        metrics: The monitored metric of every step.
        max_to_keep: None keeps all.
        mode: None ranks by newness alone.

    Example:
        >>> sorted(steps_to_keep({1: 0.1, 2: 0.3, 3: float("nan"), 4: 0.2}, 1, "min"))
        [1, 4]
    """
    if max_to_keep is None or not metrics:
        return set(metrics)
    ranked = best_of(metrics, mode)
    others = sorted(metrics.keys() - set(ranked), reverse=True)
    return {max(metrics), *(ranked + others)[:max_to_keep]}


def find_step(folder: Path, step_idx: int | Literal["best", "latest"] = "latest") -> Path:
    """Returns the folder of one step.

    Args:
        folder: A run folder, its ``checkpoints`` folder, or a step folder itself.
        step_idx: A step, ``"latest"``, or ``"best"`` by the metric the run monitored. A step
            folder is found by its own number, ``"latest"`` and ``"best"`` alike.

    Raises:
        CheckpointNotFoundError: If there is no such step; lists what is there.
        CheckpointError: If ``step_idx`` is something else.
    """
    if isinstance(step_idx, bool) or not (
        isinstance(step_idx, int) or step_idx in ("best", "latest")
    ):
        raise CheckpointError(f"step_idx: found {step_idx!r}, expected a step, 'best' or 'latest'.")
    folder = Path(folder).absolute()
    if is_step(folder):
        if isinstance(step_idx, int) and step_idx != step_of(folder):
            raise CheckpointNotFoundError(
                f"{folder}: found step {folder.name}, expected step {step_idx}. Give the folder "
                "that holds both, or leave step_idx out."
            )
        return folder
    root = folder / CHECKPOINTS_FOLDER if (folder / CHECKPOINTS_FOLDER).is_dir() else folder
    steps = list_steps(root)
    if not steps:
        raise CheckpointNotFoundError(f"{root}: found no checkpoint. {_whats_there(root)}")
    if step_idx == "best":
        return root / str(_best_on_disk(root, steps))
    if step_idx == "latest":
        return root / str(steps[-1])
    if step_idx not in steps:
        raise CheckpointNotFoundError(
            f"{root}: found no step {step_idx}, expected one of {_numbers(steps)}."
        )
    return root / str(step_idx)


def _best_on_disk(root: Path, steps: list[int]) -> int:
    """Ranks by the mode of the newest step that was saved with one."""
    mode: MonitorMode | None = None
    metrics: dict[int, float | None] = {}
    for step in reversed(steps):
        try:
            mode = mode or read_meta(root / str(step)).get(MODE_KEY)
            metrics[step] = read_metric(root / str(step), mode)
        except CheckpointError:  # an unreadable step is never the best
            continue
    ranked = best_of(metrics, mode)
    if not ranked:
        raise CheckpointNotFoundError(
            f"{root}: found no step with a finite monitored metric among {_numbers(steps)}. "
            "Use step_idx='latest' or one of these steps."
        )
    return ranked[0]


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
