"""What does a run folder say of its run? Read from its files alone, on no device."""

import contextlib
import math
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from xtrainer.checkpoint.commit import problems_of, quick_problems, read_json
from xtrainer.checkpoint.meta import meta_problems
from xtrainer.checkpoint.metadata import (
    CHECKPOINTS_FOLDER,
    META_FILE,
    MODE_KEY,
    looks_like_step,
    read_meta,
    read_metric,
)
from xtrainer.cli.usage import UsageError
from xtrainer.config.encode import CLASS_KEY
from xtrainer.errors import CheckpointError
from xtrainer.json_text import parse_json
from xtrainer.launch.folder_lock import LOCK_FILE, holder_of
from xtrainer.loggers.file import CONFIG_FILE, METRICS_FILE
from xtrainer.loop import StopReason
from xtrainer.state import Progress
from xtrainer.trainer.journal_lines import JOURNAL_FILE, JournalError, JournalLine, read_journal

_SIGNS = (METRICS_FILE, JOURNAL_FILE, LOCK_FILE, CHECKPOINTS_FOLDER)
"""What only a run folder has."""
_TAIL_BYTES = 2**16


@dataclass(frozen=True)
class Status:
    """How a run stands.

    Attributes:
        name: ``running``, ``finished``, ``stopped``, ``failed``, ``killed`` or ``not known``.
        reason: Why it has ended, or who runs it.
        exit_code: What its program ended with, where that is known.
    """

    name: str
    reason: str = ""
    exit_code: int | None = None


@dataclass(frozen=True)
class CheckpointFacts:
    """One checkpoint of a run.

    Attributes:
        folder: Of the step.
        step: Its number.
        num_bytes: On the disk.
        saved_at: When its record was written, in seconds of ``time.time()``.
        problems: What is wrong with it; empty for a whole one.
        meta: All of it that is no array; empty where that cannot be read.
        metric: The monitored metric; None where it has none.
    """

    folder: Path
    step: int
    num_bytes: int
    saved_at: float
    problems: list[str] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)
    metric: float | None = None


def find_runs(folder: Path) -> Iterator[Path]:
    """Yields the run folders in a folder, itself included, by name; follows no links.

    What lies inside of a run folder is not looked at.
    """
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    if any(entry.name in _SIGNS for entry in entries):
        yield folder
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from find_runs(Path(entry.path))


def run_and_step(folder: Path) -> tuple[Path, Path | None]:
    """Returns the run folder and, where a checkpoint is named, the folder of that.

    Raises:
        UsageError: If it is neither a run folder nor a checkpoint.
    """
    folder = folder.expanduser().resolve()
    if not folder.is_dir():
        raise UsageError(f"Found no folder {str(folder)!r}, expected that of a run.")
    if looks_like_step(folder):
        inside = folder.parent.name == CHECKPOINTS_FOLDER
        return (folder.parent.parent if inside else folder.parent), folder
    if folder.name == CHECKPOINTS_FOLDER:
        folder = folder.parent
    if not any(os.path.lexists(folder / name) for name in (*_SIGNS, CONFIG_FILE)):
        raise UsageError(
            f"{folder}: found neither {METRICS_FILE} nor {CHECKPOINTS_FOLDER}, expected the folder "
            f"of a run. `xtrainer list {folder}` shows the runs that are in it."
        )
    return folder, None


def read_lines(folder: Path) -> list[JournalLine]:
    """Returns the journal of a run; nothing where there is none, or none that can be read."""
    with contextlib.suppress(OSError, JournalError):
        return read_journal(folder)
    return []


def status_of(folder: Path, lines: list[JournalLine]) -> Status:
    """Returns how a run stands, from its lock, its journal, and what it has said.

    Args:
        folder: Of the run.
        lines: Its journal.
    """
    holder = holder_of(folder)
    if holder is not None:
        return Status("running", holder)
    last = next((line for line in reversed(lines) if line.kind in ("start", "stop")), None)
    if last is not None and last.kind == "stop":
        known = StopReason.__members__.get(last.facts["reason"])
        if known is None:  # one of a later version
            return _status_by_output(folder)
        said = f"{known.value} {last.facts['detail']}".rstrip()
        return Status(_name(known), said, last.facts["exit_code"])
    if last is not None or os.path.lexists(folder / LOCK_FILE):
        return Status("killed", "It has not come to its end.")
    return _status_by_output(folder)


def _name(reason: StopReason) -> str:
    return {"completed": "finished"}.get(reason.status, reason.status)


def _status_by_output(folder: Path) -> Status:
    """Looks for the reason of the end among the last messages."""
    said = {reason.value: reason for reason in StopReason}
    for path in sorted(folder.glob("*_0.log")):
        for line in reversed(tail(path)):
            for sentence, reason in said.items():
                if sentence in line:
                    return Status(_name(reason), line[line.index(sentence) :])
    return Status("not known", "Nothing in the folder says how it has ended.")


def tail(path: Path) -> list[str]:
    """Returns the last lines of a file, none where it cannot be read."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
        return lines if size <= _TAIL_BYTES else lines[1:]
    except OSError:
        return []


def newest_rows(folder: Path) -> dict[str, dict[str, Any]]:
    """Returns the newest row of each set that is among the last lines of metrics."""
    rows: dict[str, dict[str, Any]] = {}
    for line in tail(folder / METRICS_FILE):
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            row: Any = parse_json(line)
            if type(row["step"]) is int and isinstance(row["set"], str):
                row["metrics"] = {
                    name: float(row.get("nonfinite", {}).get(name, value))
                    for name, value in row["metrics"].items()
                }
                rows[row["set"]] = row
    return rows


def checkpoints_of(folder: Path, verify: bool = False) -> list[CheckpointFacts]:
    """Returns the checkpoints of a run, oldest first.

    Args:
        folder: Of the run, or of its checkpoints.
        verify: Whether every byte is read, and not only the sizes of files compared.
    """
    root = folder / CHECKPOINTS_FOLDER
    root = root if root.is_dir() else folder
    with contextlib.suppress(OSError):
        paths = [path for path in root.iterdir() if looks_like_step(path)]
        return [read_checkpoint(p, verify) for p in sorted(paths, key=lambda p: int(p.name))]
    return []


def read_checkpoint(path: Path, verify: bool = False) -> CheckpointFacts:
    """Returns what one checkpoint says of itself; the arguments are as above."""
    meta: dict[str, Any] = {}
    metric: float | None = None
    problems: list[str] = []
    try:
        problems = problems_of(path) if verify else quick_problems(path)
        # Of one that is damaged the rest may still be told.
        meta = read_json(path / META_FILE) if problems else read_meta(path)
        if found := meta_problems(meta):
            raise CheckpointError(f"{META_FILE}: {'; '.join(found[:5])}")
        Progress.from_json(meta["progress"])
        metric = None if problems else read_metric(path)
    except CheckpointError as error:
        meta, problems = {}, problems or [str(error)]
    size, changed = disk_use(path)
    return CheckpointFacts(path, int(path.name), size, changed, problems, meta, metric)


def best_values(checkpoints: Sequence[CheckpointFacts]) -> dict[str, tuple[float, int]]:
    """Returns value and step of the best of each monitored metric, that of checkpoints first.

    Args:
        checkpoints: Of a run, oldest first.
    """
    whole = [one for one in checkpoints if not one.problems]
    if not whole:
        return {}
    meta = whole[-1].meta
    noted = Progress.from_json(meta["progress"]).best
    best = {name: (float(entry["value"]), int(entry["step"])) for name, entry in noted.items()}
    name, mode = _monitored(meta), meta.get(MODE_KEY)
    # What was measured after the newest save is not in it, but beside it.
    found = [(one.metric, one.step) for one in whole if one.metric is not None]
    if name is None or mode not in ("min", "max") or not found:
        return best
    found += [best[name]] if name in best else []
    finite = [entry for entry in found if math.isfinite(entry[0])] or found
    chosen = (min if mode == "min" else max)(finite, key=lambda entry: entry[0])
    return {name: chosen} | {other: entry for other, entry in best.items() if other != name}


def _monitored(meta: Mapping[str, Any]) -> str | None:
    """Returns the metric by which checkpoints are kept."""
    trainer = meta["config"].get("trainer")
    callbacks = trainer.get("callbacks") if isinstance(trainer, Mapping) else None
    for callback in callbacks if isinstance(callbacks, list) else ():
        if isinstance(callback, Mapping) and isinstance(callback.get("monitor"), str):
            if callback.get(CLASS_KEY) == "ModelCheckpointConfig":
                return callback["monitor"].removeprefix("train/").removeprefix("val/")
    return None


def configs_of(folder: Path, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the configs of a run as JSON: those in its folder, else those of a checkpoint."""
    with contextlib.suppress(CheckpointError):
        return read_json(folder / CONFIG_FILE)
    found = meta.get("config")
    return dict(found) if isinstance(found, Mapping) else {}


def disk_use(folder: Path) -> tuple[int, float]:
    """Returns the bytes of all files in a folder, and when the newest of them was written."""
    total, newest = 0, 0.0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                found = os.lstat(os.path.join(root, name))
                if stat.S_ISREG(found.st_mode) and name != LOCK_FILE:
                    total, newest = total + found.st_size, max(newest, found.st_mtime)
    return total, newest


def iso(moment: float) -> str | None:
    """Returns a moment of ``time.time()`` in UTC for a program, None for 0.

    Example:
        >>> iso(0.0) is None, iso(1.5)
        (True, '1970-01-01T00:00:01+00:00')
    """
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds") if moment else None


def local(moment: float) -> str:
    """Returns a moment of ``time.time()`` by the clock of this machine, for people."""
    return datetime.fromtimestamp(moment).strftime("%Y-%m-%d %H:%M") if moment else "–"
