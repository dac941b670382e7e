"""What is in the folder of a run? All that a report tells of, as far as it is there and whole."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from xtrainer.checkpoint import list_steps, read_meta
from xtrainer.checkpoint.commit import read_commit, read_json
from xtrainer.config.redact import redact
from xtrainer.errors import XTrainerError
from xtrainer.loggers import read_metrics
from xtrainer.loggers.file import CONFIG_FILE, METRICS_FILE, SUPERSEDED_FILE
from xtrainer.trainer import JournalLine, read_journal
from xtrainer.trainer.box_files import FOLDER as BLACK_BOX
from xtrainer.trainer.box_files import read_records
from xtrainer.trainer.journal_lines import JOURNAL_FILE
from xtrainer.types import HostMetrics

CHECKPOINTS = "checkpoints"
_SIGNS = (METRICS_FILE, JOURNAL_FILE, CONFIG_FILE, CHECKPOINTS)


class ReportError(XTrainerError, ValueError):
    """A folder that no report can be made of."""


class Row(NamedTuple):
    """A row of metrics.

    Attributes:
        mode: The set.
        step: Its step.
        epoch: Its epoch.
        time: When it was written; None: not known.
        metrics: By name.
    """

    mode: str
    step: int
    epoch: int
    time: datetime | None
    metrics: HostMetrics


class SavedStep(NamedTuple):
    """A checkpoint that is there.

    Attributes:
        step: Its step.
        num_bytes: Of its files.
        metrics: That it was saved with, as text where they are not finite.
    """

    step: int
    num_bytes: int
    metrics: dict[str, Any]


@dataclass(frozen=True)
class RunRecord:
    """What is known of a run.

    Attributes:
        folder: The run folder.
        rows: Of metrics, oldest first.
        superseded: Rows of steps that were taken again.
        lines: Of the journal.
        config: All configs of the run, without secrets.
        saved: The checkpoints that are there, oldest first.
        meta: What the newest of them says of itself.
        refused: Records of the black box by step.
        missing: Why a part is not there, by its name.
    """

    folder: Path
    rows: list[Row] = field(default_factory=list)
    superseded: list[Row] = field(default_factory=list)
    lines: list[JournalLine] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    saved: list[SavedStep] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)
    refused: dict[int, dict[str, Any]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """That of the folder."""
        return self.folder.name


def read_run(folder: str | Path) -> RunRecord:
    """Returns what the folder of a run holds; nothing there is changed.

    A part that is missing or damaged is left out, and ``missing`` says why.

    Raises:
        ReportError: If it is no folder, or nothing of a run is in it.

    Example:
        >>> read_run("runs/nothing")
        Traceback (most recent call last):
        xtrainer.report.run.ReportError: runs/nothing: found no folder, expected that of a run.
    """
    given, folder = folder, Path(folder).expanduser().resolve()
    if not folder.is_dir():
        what = "a file" if folder.exists() else "no folder"
        raise ReportError(f"{given}: found {what}, expected that of a run.")
    if not any((folder / name).exists() for name in _SIGNS):
        raise ReportError(
            f"{given}: found nothing of a run in this folder, expected one of {', '.join(_SIGNS)}. "
            "Give the folder that the run printed as its run folder."
        )
    missing: dict[str, str] = {}

    def part(name: str, read: Callable[[], Any], otherwise: Any, absent: str | None) -> Any:
        try:
            return read()
        except FileNotFoundError:
            if absent is not None:
                missing[name] = absent
        except (OSError, ValueError, KeyError, TypeError, XTrainerError) as error:
            missing[name] = str(error)
        return otherwise

    superseded = folder / SUPERSEDED_FILE
    rows = lambda path: _sound(read_metrics(path))  # noqa: E731
    saved, meta = part("checkpoints", lambda: _saved(folder, missing), ([], {}), None)
    return RunRecord(
        folder,
        part("metrics", lambda: rows(folder / METRICS_FILE), [], "No row of metrics was written."),
        part("rows of steps taken again", lambda: rows(superseded), [], None),
        part("journal", lambda: read_journal(folder), [], "There is no journal of this run."),
        part("config", lambda: redact(read_json(folder / CONFIG_FILE)), {}, "No config.json."),
        saved,
        meta,
        part("refused steps", lambda: _records(folder), {}, None),
        missing,
    )


def _sound(rows: list[dict[str, Any]]) -> list[Row]:
    """Returns rows with what cannot be a number left out."""
    found = []
    for row in rows:
        metrics = row["metrics"].items()
        numbers = {str(n): float(v) for n, v in metrics if type(v) in (int, float)}
        epoch = row.get("epoch")
        epoch = epoch if type(epoch) is int else 0
        found.append(Row(row["set"], row["step"], epoch, _time(row.get("time")), numbers))
    return found


def _time(text: Any) -> datetime | None:
    try:
        found = datetime.fromisoformat(text)
        return found.astimezone(UTC)
    except (ValueError, TypeError, OverflowError):
        return None


def _saved(folder: Path, missing: dict[str, str]) -> tuple[list[SavedStep], dict[str, Any]]:
    """Returns the steps of a run's folder, and the metadata of the newest that can be read."""
    found, newest = [], {}
    for step in list_steps(folder / CHECKPOINTS):
        place = folder / CHECKPOINTS / str(step)
        try:
            size = sum(size for size, _ in read_commit(place).files.values())
            newest = read_meta(place)
        except (OSError, XTrainerError) as error:
            missing[f"checkpoint {step}"] = str(error)
        else:
            found.append(SavedStep(step, size, dict(newest["metrics"])))
    return found, newest


def _records(folder: Path) -> dict[int, dict[str, Any]]:
    return read_records(folder) if (folder / BLACK_BOX).is_dir() else {}


def finite(values: list[float]) -> list[float]:
    """Returns those that are."""
    return [value for value in values if math.isfinite(value)]
