"""Metrics in files of the run folder: JSON lines that survive a kill, and a CSV view of them."""

import contextlib
import csv
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from xtrainer.errors import MetricError
from xtrainer.json_text import parse_json
from xtrainer.loggers.base import LoggerTool, LoggerToolConfig, NullLogger, finish_all, host_floats
from xtrainer.loggers.guarded import LATE_ROWS
from xtrainer.loggers.lines import LineFile, cut_after_last_newline, tail_of
from xtrainer.loggers.media import Cell, file_name, table_csv
from xtrainer.types import JSON, HostMetrics

METRICS_FILE = "metrics.jsonl"
CONFIG_FILE = "config.json"
SUPERSEDED_FILE = "metrics.superseded.jsonl"
"""Rows of a course of training that was left, for an earlier checkpoint."""
TABLES_FOLDER = "tables"
"""One folder in it for each name, one file in that for each step."""

_SET_NAME = re.compile(r"(?!\.)[A-Za-z0-9_.-]{1,64}")
_FIXED_COLUMNS = ("step", "epoch")
_ENCODER = json.JSONEncoder(allow_nan=False)


@dataclass(frozen=True, kw_only=True)
class FileLoggerConfig(LoggerToolConfig):
    """Files in the run folder: ``metrics.jsonl``, ``metrics_<set>.csv`` and ``config.json``.

    Tables that are logged besides are ``tables/<name>/<step>.csv``.
    """

    csv: bool = True
    """Whether to write the CSV files beside the JSON lines."""

    def create(self, folder: Path | None) -> LoggerTool:
        """Returns the tool; one that does nothing where there is no run folder."""
        return NullLogger() if folder is None else FileLogger(folder, with_csv=self.csv)


class FileLogger(LoggerTool):
    """Writes every row when it is logged; a killed run keeps all of its rows.

    Args:
        folder: Where to write; an earlier run's files there are continued.
        with_csv: Whether to write one CSV file per set as well.
    """

    def __init__(self, folder: Path, with_csv: bool = True) -> None:
        self.folder = folder
        self.with_csv = with_csv
        self._rows: LineFile | None = None
        self._tables: dict[str, CsvTable] = {}
        self._count = 0

    def open(self) -> None:
        """Opens ``metrics.jsonl`` for appending; a row torn by a kill is taken off its end."""
        self._open_rows()

    def log_config(self, config: Mapping[str, JSON]) -> None:
        """Writes ``config.json``, whole or not at all."""
        text = json.dumps(config, indent=2, allow_nan=False)
        self.folder.mkdir(parents=True, exist_ok=True)
        with _replacing(self.folder / CONFIG_FILE) as file:
            file.write(text + "\n")

    def log_metrics(self, metrics: HostMetrics, step: int, mode: str, epoch: int) -> None:
        """Appends one row to ``metrics.jsonl`` and to the table of its set.

        Raises:
            MetricError: If a value is no number or the set cannot name a file.
            OSError: If it cannot be written; then neither file has it.
        """
        row = host_floats(metrics)
        if not _SET_NAME.fullmatch(mode):
            raise MetricError(
                f"Found the set name {mode!r}, expected 1 to 64 of the characters "
                "A-Z a-z 0-9 _ . - without a leading dot. Rename it."
            )
        rows = self._open_rows()
        size = rows.size
        rows.write(_encode_row(row, step, mode, epoch))
        if self.with_csv:
            try:
                self._append(row, step, mode, epoch)
            except BaseException:
                rows.shorten(size)
                table = self._tables.pop(mode, None)  # what it knows of its file may be wrong
                if table is not None:
                    table.close()
                raise
        self._count += 1

    def log_table(
        self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], step: int
    ) -> None:
        """Writes ``tables/KEY/STEP.csv``, whole or not at all; one of that step is replaced."""
        folder = self.folder / TABLES_FOLDER / file_name(key)
        folder.mkdir(parents=True, exist_ok=True)
        with _replacing(folder / f"{step:08d}.csv") as file:
            file.write(table_csv(columns, rows))

    def flush(self) -> None:
        """Does nothing more: every row is flushed when it is written."""

    def state_dict(self) -> dict[str, JSON]:
        """Returns the number of rows so far."""
        self._open_rows()
        return {"rows": self._count}

    def load_state_dict(self, state: Mapping[str, Any], step: int) -> None:
        """Moves rows that came after a checkpoint to ``metrics.superseded.jsonl``.

        Where the file is another one than the checkpoint knew, these are the rows of later steps.
        The CSV files are written anew in any case: a kill may have come while they were. Tables of
        later steps are removed: a run that comes there again writes them again.
        """
        self.finalize("stopped")
        for table in (self.folder / TABLES_FOLDER).glob("*/*.csv"):
            if table.stem.isdecimal() and int(table.stem) > step:
                table.unlink()
        path = self.folder / METRICS_FILE
        if path.exists():
            _mend_rows(path)
            retire_rows(path, None if state.get(LATE_ROWS) else state.get("rows"), step)
            if self.with_csv:
                self._write_tables()

    def _write_tables(self) -> None:
        """Writes the CSV files anew from the rows."""
        for old in self.folder.glob("metrics_*.csv"):
            old.unlink()
        for row in read_metrics(self.folder):
            self._append(row["metrics"], row["step"], row["set"], row["epoch"])
        self.finalize("stopped")

    def _append(self, row: HostMetrics, step: int, mode: str, epoch: int) -> None:
        if mode not in self._tables:
            self._tables[mode] = CsvTable(self.folder / f"metrics_{mode}.csv")
        self._tables[mode].append(step, epoch, row)

    def finalize(self, status: str) -> None:
        """Closes the files; the next row opens them again."""
        closing = [table.close for table in self._tables.values()]
        if self._rows is not None:
            closing.append(self._rows.close)
        self._rows, self._tables = None, {}
        finish_all(closing)

    def _open_rows(self) -> LineFile:
        if self._rows is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / METRICS_FILE
            _mend_rows(path)
            self._count = _count_lines(path)
            self._rows = LineFile(path)
        return self._rows


class CsvTable:
    """One CSV file: ``step``, ``epoch``, then the metrics in the order in which they first came.

    A metric that comes later adds a column; the file is then written anew and put in place whole.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: LineFile | None = None
        self._writer: Any = None
        self._columns: list[str] = []
        self._names: dict[str, str] = {}  # columns by metric

    def append(self, step: int, epoch: int, metrics: HostMetrics) -> None:
        """Writes one row."""
        names = self._names
        for key in metrics.keys() - names.keys():
            names[key] = _column(key)
        cells = {names[key]: value for key, value in metrics.items()}
        if self._file is None:
            self._reopen()
        new = [column for column in cells if column not in self._columns]
        if new or not self._columns:
            self._widen(new)
        known = self._columns[len(_FIXED_COLUMNS) :]
        values = ["" if (cell := cells.get(column)) is None else repr(cell) for column in known]
        self._writer.writerow([step, epoch, *values])  # in one write

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _reopen(self) -> None:
        if self.path.exists():
            cut_after_last_newline(self.path)
            with open(self.path, encoding="utf-8", newline="") as file:
                self._columns = next(csv.reader(file), [])
        self._file = LineFile(self.path)
        self._writer = csv.writer(self._file, lineterminator="\n")

    def _widen(self, new: list[str]) -> None:
        self.close()
        with open(self.path, encoding="utf-8", newline="") as file:
            old_rows = list(csv.reader(file))[1:]
        self._columns = [*(self._columns or _FIXED_COLUMNS), *new]
        with _replacing(self.path) as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(self._columns)
            width = len(self._columns)
            writer.writerows([*row, *[""] * (width - len(row))] for row in old_rows)
        self._reopen()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Returns the rows of a ``metrics.jsonl``, or of the one in a run folder, oldest first.

    A row has the keys ``set``, ``step``, ``epoch``, ``time`` and ``metrics``; NaN and infinities
    are floats again. A last line that a killed run left unfinished is passed over.

    Raises:
        FileNotFoundError: If there is no such file.
        MetricError: If a line before the last is no row.
    """
    path = Path(path)
    path = path / METRICS_FILE if path.is_dir() else path
    if path.exists() and not path.is_file():
        raise MetricError(f"{path}: found no regular file, expected rows of metrics.")
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        row = _decode_row(line)
        if row is not None:
            rows.append(row)
        elif number < len(lines):  # what follows the last newline is a torn row, or nothing
            raise MetricError(
                f"{path}, line {number}: found {line[:60]!r}, expected a row of metrics as JSON. "
                "Remove the line if the rest of the file is to be read."
            )
    return rows


def _encode_row(row: HostMetrics, step: int, mode: str, epoch: int) -> str:
    nonfinite = {key: repr(value) for key, value in row.items() if not math.isfinite(value)}
    entry: dict[str, JSON] = {
        "set": mode,
        "step": int(step),
        "epoch": int(epoch),
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "metrics": {key: None if key in nonfinite else value for key, value in row.items()},
    }
    if nonfinite:
        entry["nonfinite"] = nonfinite
    return _ENCODER.encode(entry) + "\n"


def _decode_row(line: str) -> dict[str, Any] | None:
    try:
        row = parse_json(line)
        # The name of a set becomes the name of a file.
        if not _SET_NAME.fullmatch(row["set"]) or type(row["step"]) is not int:
            return None
        row["metrics"] |= {key: float(text) for key, text in row.pop("nonfinite", {}).items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return row


def retire_rows(path: Path, count: int | None, step: int) -> bool:
    """Moves rows that came after a checkpoint into a file beside theirs.

    A kill in between leaves them in both, and the next time they are moved again.

    Args:
        path: Of the rows, all of them whole.
        count: Rows there were at the checkpoint; None: not known.
        step: Of the checkpoint.

    Returns:
        Whether there were any.
    """
    lines = path.read_bytes().splitlines(keepends=True)
    kept = lines if count is None else lines[:count]
    if count is None or any(_step_of(line) > step for line in kept):
        kept = [line for line in lines if _step_of(line) <= step]
        retired = [line for line in lines if _step_of(line) > step]
    else:
        retired = lines[count:]
    if not retired:
        return False
    with open(path.with_name(SUPERSEDED_FILE), "ab") as file:
        file.writelines(retired)
        file.flush()
        os.fsync(file.fileno())
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)
    with open(temporary, "xb") as file:
        file.writelines(kept)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    return True


def _step_of(line: bytes) -> int:
    row = _decode_row(line.decode("utf-8", errors="replace"))
    return -1 if row is None else int(row["step"])


def _count_lines(path: Path) -> int:
    if not path.exists():
        return 0
    with open(path, "rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(2**20), b""))


def _mend_rows(path: Path) -> None:
    """Ends a last row that lacks only its newline, and takes off one that is torn."""
    if not path.exists():
        return
    tail = tail_of(path)
    if not tail:
        return
    if _decode_row(tail.decode("utf-8", errors="replace")) is None:
        cut_after_last_newline(path)
    else:
        with open(path, "ab") as file:
            file.write(b"\n")


def _column(key: str) -> str:
    """Returns a metric's column: one line, and never that of ``step`` or ``epoch``."""
    name = f"metrics.{key}" if key in _FIXED_COLUMNS or key.startswith("metrics.") else key
    # What would break a line, and lone surrogates, are written as Python's escapes.
    return re.sub(
        r"[\\\x00-\x1f\x7f\ud800-\udfff]",
        lambda match: match.group().encode("unicode_escape").decode("ascii"),
        name,
    )


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[IO[str]]:
    """Gives a file that takes the place of another when it is whole; else it leaves nothing."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)  # of a killed run; a link would be written through
    try:
        with open(temporary, "x", encoding="utf-8", newline="") as file:
            yield file
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
