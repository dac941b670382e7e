"""Which checkpoint has a run failed with? One that ends each start at once is gone back from."""

from pathlib import Path

from xtrainer.checkpoint.commit import read_json
from xtrainer.checkpoint.durable import write_json
from xtrainer.errors import CheckpointError

FAILED_FILE = "FAILED.json"
STARTS = 2
"""After so many starts that failed with a step before any other was taken, it is left out."""


def failed_starts(folder: Path) -> tuple[int, int]:
    """Returns the step that the newest starts have failed with, and how many; ``(-1, 0)``: none."""
    try:
        record = read_json(folder / FAILED_FILE)
        return int(record["step"]), int(record["count"])
    except (CheckpointError, KeyError, TypeError, ValueError, OverflowError):
        return -1, 0


def note_failed_start(folder: Path, step: int) -> None:
    """Notes that a start has failed before it took a step."""
    known, count = failed_starts(folder)
    write_json(folder / FAILED_FILE, {"step": step, "count": count + 1 if known == step else 1})


def forget_failed_starts(folder: Path) -> None:
    """Says that a start has come further."""
    (folder / FAILED_FILE).unlink(missing_ok=True)


def steps_to_leave_out(folder: Path) -> set[int]:
    """Returns the step that has ended the last starts at once, if it was often enough."""
    step, count = failed_starts(folder)
    return {step} if count >= STARTS else set()
