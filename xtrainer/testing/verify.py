"""Is a run that was killed the same as one that was not? Where do they differ first?"""

import dataclasses
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xtrainer.loggers import read_metrics


@dataclass(frozen=True)
class Journal:
    """What one process of a run has noted.

    Attributes:
        start: The step that it began at; None where it was killed before.
        steps: Fingerprints of the state's leaves after each step.
        end: Digests of the leaves at the end; empty where it did not get there.
        batches: A checksum for each batch by its pass and its number in it.
        end_step: The step of ``end``.
        times: When each step was done, in seconds of ``time.time()``.
        saves: When each checkpoint was begun, by its step.
        saved: When it was there.
        fault_at: When a fault has come.
        stop: The name of the ``StopReason``; empty where the process did not get there.
        accounts: Where the time went, see ``xtrainer.loop.Ledger``.
    """

    start: int | None = None
    steps: dict[int, dict[str, str]] = field(default_factory=dict)
    end: dict[str, str] = field(default_factory=dict)
    batches: dict[tuple[int, int], int] = field(default_factory=dict)
    end_step: int | None = None
    times: dict[int, float] = field(default_factory=dict)
    saves: dict[int, float] = field(default_factory=dict)
    saved: dict[int, float] = field(default_factory=dict)
    fault_at: float | None = None
    stop: str = ""
    accounts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Difference:
    """The first thing that is not the same.

    Attributes:
        what: ``state``, ``end``, ``data`` or ``rows``.
        where: Step and leaf, or what else names the place.
        found: In the run that was killed.
        expected: In the one that was not.
    """

    what: str
    where: str
    found: str
    expected: str

    def __str__(self) -> str:
        return f"{self.what}: {self.where}: found {self.found}, expected {self.expected}"


def read_journal(path: Path) -> Journal:
    """Returns the journal in a file; a last line that is torn is passed over."""
    journal, single = Journal(), {}
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        match line["kind"]:
            case "start":
                single["start"] = int(line["step"])
            case "step":
                journal.steps[int(line["step"])] = line["leaves"]
                if "at" in line:
                    journal.times[int(line["step"])] = line["at"]
            case "end":
                journal.end.update(line["leaves"])
                single["end_step"] = int(line["step"])
            case "batch":
                first, second = line["place"]
                journal.batches[(int(first), int(second))] = int(line["checksum"])
            case "save" | "saved" as kind:
                (journal.saves if kind == "save" else journal.saved)[line["step"]] = line["at"]
            case "fault":
                single.setdefault("fault_at", line["at"])
            case "stop":
                single |= {"stop": line["reason"], "accounts": line["seconds"]}
    return dataclasses.replace(journal, **single)


def choose_kills(last_step: int, count: int, seed: int) -> list[int]:
    """Returns some steps of a run, in ascending order.

    Example:
        >>> choose_kills(100, 3, seed=0)
        [50, 54, 98]
    """
    steps = range(1, last_step + 1)
    return sorted(random.Random(seed).sample(steps, min(count, last_step)))


def compare(
    reference: Journal, parts: Sequence[Journal], folders: tuple[Path, Path]
) -> list[Difference]:
    """Returns the first difference of each kind between an unbroken run and the parts of another.

    Args:
        reference: Of the unbroken run.
        parts: Of the processes of the other one, in their order.
        folders: The run folders of both, for the rows of metrics.
    """
    found = [_first_state(reference, parts), _first_end(reference, parts[-1])]
    found += [_first_batch(reference, parts), _first_row(*folders)]
    return [difference for difference in found if difference is not None]


def _first_state(reference: Journal, parts: Sequence[Journal]) -> Difference | None:
    for step in sorted(reference.steps):
        expected, seen = reference.steps[step], False
        for part in parts:
            leaves = part.steps.get(step)
            seen = seen or leaves is not None
            for path in expected if leaves is not None else ():
                if leaves.get(path) != expected[path]:  # type: ignore[union-attr]
                    found = str(leaves.get(path))  # type: ignore[union-attr]
                    return Difference("state", f"step {step}, {path}", found, expected[path])
        if not seen:
            return Difference("state", f"step {step}", "no such step", "one")
    return None


def _first_end(reference: Journal, last: Journal) -> Difference | None:
    for path, expected in reference.end.items():
        if last.end.get(path) != expected:
            return Difference("end", path, str(last.end.get(path)), expected)
    return None


def _first_batch(reference: Journal, parts: Sequence[Journal]) -> Difference | None:
    for place, expected in sorted(reference.batches.items()):
        for part in parts:
            found = part.batches.get(place, expected)
            if found != expected:
                where = f"batch {place[1]} of pass {place[0] + 1}"
                return Difference("data", where, f"{found:08x}", f"{expected:08x}")
    return None


def _first_row(whole: Path, broken: Path) -> Difference | None:
    expected, found = (_rows(folder) for folder in (whole, broken))
    for i in range(max(len(expected), len(found))):
        a, b = (rows[i] if i < len(rows) else None for rows in (found, expected))
        if a != b:
            known = a or b or {}
            where = f"the {known['set']} row of step {known['step']}"
            return Difference("rows", where, _shown(a, b), _shown(b, a))
    return None


def _rows(folder: Path) -> list[dict[str, Any]]:
    """Returns the rows without what measures time; NaN compares as text."""
    rows = []
    for row in read_metrics(folder):
        metrics = {k: repr(v) for k, v in row["metrics"].items() if not k.endswith("time_s")}
        rows.append({"set": row["set"], "step": row["step"], "metrics": metrics})
    return rows


def _shown(row: dict[str, Any] | None, other: dict[str, Any] | None) -> str:
    if row is None:
        return "no row"
    if other is None or (row["set"], row["step"]) != (other["set"], other["step"]):
        return f"{row['set']} row of step {row['step']}"
    names = [k for k, v in row["metrics"].items() if other["metrics"].get(k) != v]
    return ", ".join(f"{name} {row['metrics'][name]}" for name in names[:3]) or "fewer metrics"
