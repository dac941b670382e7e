"""What does the journal of a run say? One line of JSON for each thing that has happened, in order.

Synopsis:
    {"kind": "checkpoint", "time": "2026-01-02T03:04:05.678+00:00", "step": 200,
     "seconds": {"step": 81.2, "compile": 9.4}, "took_s": 0.8, "bytes": 4194304, ...}

``seconds`` are those of :class:`xtrainer.loop.Ledger` since the start before, by account.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import NoneType
from typing import Any

from xtrainer.counts import MAX_COUNT
from xtrainer.errors import XTrainerError
from xtrainer.json_text import parse_json
from xtrainer.loop.ledger import ACCOUNTS
from xtrainer.types import JSON

JOURNAL_FILE = "journal.jsonl"
MAX_BYTES = 2**23
"""Of the file: nothing is added to one that is as long, and a longer one is not read."""

_NUMBER = (int, float)
_LARGEST = 1e30
KINDS: Mapping[str, Mapping[str, tuple[type, ...]]] = {
    "start": {
        "host": (str,), "pid": (int,), "process_count": (int,), "devices": (dict,),
        "mesh": (dict,), "versions": (dict,), "git": (str, NoneType), "numerics": (dict,),
        "parameters": (int,), "flops_per_step": (*_NUMBER, NoneType),
        "total_steps": (int, NoneType), "online": (bool,),
    },
    "first_step": {},
    "ledger": {},
    "validation": {},
    "checkpoint": {
        "took_s": _NUMBER, "bytes": (int,), "folder": (str,), "problem": (str, NoneType),
    },
    "refused": {"first": (int,), "count": (int,)},
    "rollback": {"from_step": (int,), "reason": (str,), "skipped_batches": (int,)},
    "stop": {"reason": (str,), "detail": (str,), "exit_code": (int,)},
}  # fmt: skip
"""The kinds of lines, and what each says besides, with its types."""


class JournalError(XTrainerError, ValueError):
    """A journal that is damaged or too long."""


@dataclass(frozen=True)
class JournalLine:
    """Something that has happened to a run.

    Attributes:
        kind: ``start`` (of a process that trains, at ``step``), ``first_step``, ``ledger``,
            ``validation``, ``checkpoint`` (committed, or with a ``problem``), ``refused`` (steps
            that the guard has refused, the last of them ``step``), ``rollback`` (to ``step``) or
            ``stop``; a process that was killed has no ``stop``.
        time: When, with its time zone.
        step: Steps of the state.
        seconds: By account of :class:`xtrainer.loop.Ledger`, since the start before; zeros are
            left out.
        facts: What lines of that kind say besides, see ``KINDS``.

    Example:
        >>> line = JournalLine("stop", datetime.now(UTC), 200, {"step": 4.0}, {"exit_code": 0})
        >>> line.kind, line.total_s
        ('stop', 4.0)
    """

    kind: str
    time: datetime
    step: int
    seconds: dict[str, float]
    facts: dict[str, Any]

    @property
    def total_s(self) -> float:
        """All seconds since the start before."""
        return sum(self.seconds.values())


def read_journal(path: str | Path) -> list[JournalLine]:
    """Returns the lines of a ``journal.jsonl``, or of the one in a run folder, oldest first.

    Lines of kinds that are not known, of a newer version, are passed over, and so is a last one
    that a kill has left unfinished.

    Raises:
        FileNotFoundError: If there is no such file.
        JournalError: If it is longer than a run writes, or a line is not what a run writes.

    Example:
        >>> read_journal("nowhere")
        Traceback (most recent call last):
        FileNotFoundError: [Errno 2] No such file or directory: 'nowhere'
    """
    path = Path(path)
    path = path / JOURNAL_FILE if path.is_dir() else path
    if os.path.lexists(path) and not path.is_file():
        raise JournalError(f"{path}: found no regular file, expected the journal of a run.")
    with open(path, "rb") as file:
        data = file.read(MAX_BYTES + 2**16)
    if len(data) > MAX_BYTES + 2**15:
        raise JournalError(
            f"{path}: found more than {MAX_BYTES:,} bytes, which no run writes. Move it away."
        )
    *whole, torn = data.split(b"\n")
    lines = []
    for number, text in enumerate(whole, start=1):
        try:
            line = decode(text)
        except (ValueError, KeyError, TypeError) as error:
            raise JournalError(
                f"{path}, line {number}: found {text[:60].decode(errors='replace')!r}, expected a "
                f"line of a journal ({error}). Remove the line if the rest is to be read."
            ) from error
        if line is not None:
            lines.append(line)
    return lines


def encode(line: JournalLine) -> str:
    """Returns a line as it is written."""
    entry = {
        "kind": line.kind,
        "time": line.time.isoformat(timespec="milliseconds"),
        "step": line.step,
        "seconds": {name: round(s, 3) for name, s in line.seconds.items() if round(s, 3)},
        **line.facts,
    }
    return json.dumps(entry, allow_nan=False) + "\n"


def decode(text: bytes) -> JournalLine | None:
    """Returns a line that was written; None for one of a kind that is not known.

    Raises:
        ValueError: If it is none, as are ``KeyError`` and ``TypeError``.
    """
    entry: Any = parse_json(text)
    if not isinstance(entry, dict):
        raise ValueError(f"found a {type(entry).__name__}, expected an object")
    kind, step = entry.pop("kind"), entry.pop("step")
    if type(step) is not int or not 0 <= step <= MAX_COUNT:
        raise ValueError(f"step: found {step!r:.40}, expected a number of steps")
    time = datetime.fromisoformat(entry.pop("time"))
    seconds = _seconds(entry.pop("seconds"))
    if kind not in KINDS:
        return None
    for name, types in KINDS[kind].items():
        if type(entry[name]) not in types:
            raise ValueError(f"{name}: found a {type(entry[name]).__name__}")
        if isinstance(entry[name], _NUMBER) and not abs(entry[name]) < _LARGEST:
            raise ValueError(f"{name}: found {entry[name]!r:.40}, more than it can be")
    return JournalLine(kind, time.astimezone(UTC), step, seconds, entry)


def _seconds(found: JSON) -> dict[str, float]:
    if not isinstance(found, dict):
        raise ValueError("seconds: expected an object")
    for name, value in found.items():
        if type(value) not in _NUMBER:
            raise ValueError(f"seconds: found {value!r:.40} for {name!r:.40}, expected a number")
    return {name: float(found[name]) for name in ACCOUNTS if name in found}
