"""How often was a run started, what did each start take, and what of it was lost?"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from xtrainer.callbacks.chips import peak_flops
from xtrainer.report.run import Row, RunRecord
from xtrainer.trainer import JournalLine

TRAINING = ("step", "data_wait", "logging", "callbacks")
"""The accounts of a ledger that belong to the course of steps."""


@dataclass(frozen=True)
class Start:
    """A process that has trained, from its start to its end.

    Attributes:
        lines: Of the journal; the first is the start's own.
        last_step: The newest step that is known of it.
        last_time: When something was heard of it last.
        rolled_back: Steps that it has forgotten itself, by going back.
        killed_off: Steps that the next start has to take again.
        kept_until: When it had reached the step that the next start goes on from; None: nothing
            was lost.
    """

    lines: tuple[JournalLine, ...]
    last_step: int
    last_time: datetime
    rolled_back: int = 0
    killed_off: int = 0
    kept_until: datetime | None = None

    @property
    def begin(self) -> JournalLine:
        """The line of the start."""
        return self.lines[0]

    @property
    def began(self) -> datetime:
        """When the process began with what the start's own line has counted, as to restore."""
        return self.begin.time - timedelta(seconds=self.begin.total_s)

    @property
    def stop(self) -> JournalLine | None:
        """The line of its end; None where it was killed, or runs."""
        return next((line for line in reversed(self.lines) if line.kind == "stop"), None)

    @property
    def seconds(self) -> dict[str, float]:
        """By account, up to what was heard last."""
        return self.lines[-1].seconds

    @property
    def total_s(self) -> float:
        """All of them."""
        return sum(self.seconds.values())

    @property
    def steps_taken(self) -> int:
        """Those that were lost too."""
        return max(self.last_step - self.begin.step, 0) + self.rolled_back

    @property
    def lost_steps(self) -> int:
        """Steps that were taken and are not in the state that the run went on with."""
        return self.rolled_back + self.killed_off

    @property
    def lost_s(self) -> float:
        """The seconds of the lost steps, if all were equally long."""
        taken = self.steps_taken
        return self.seconds.get("step", 0.0) * self.lost_steps / taken if taken else 0.0


def starts_of(run: RunRecord) -> list[Start]:
    """Returns the starts of a run, oldest first; none where it has no journal."""
    groups: list[list[JournalLine]] = []
    for line in run.lines:
        if line.kind == "start":
            groups.append([line])
        elif groups:  # a journal begins with a start, unless somebody has cut it
            groups[-1].append(line)
    rows = sorted(
        (row for row in [*run.rows, *run.superseded] if row.time), key=lambda row: str(row.time)
    )
    found = []
    for index, lines in enumerate(groups):
        after = groups[index + 1][0] if index + 1 < len(groups) else None
        found.append(_start(lines, rows, after))
    return found


def _start(lines: Sequence[JournalLine], rows: Sequence[Row], after: JournalLine | None) -> Start:
    began, until = lines[0].time, None if after is None else after.time
    own = [row for row in rows if _within(row, began, until)]
    back = max((i for i, line in enumerate(lines) if line.kind == "rollback"), default=0)
    heard = [(line.time, line.step) for line in lines[back:]]
    heard += [(row.time, row.step) for row in own if row.time and row.time >= lines[back].time]
    last_step = max(step for _, step in heard)
    gone = sum(x.facts["from_step"] - x.step for x in lines if x.kind == "rollback")
    lost = 0 if after is None else max(last_step - after.step, 0)
    kept_until = None
    if after is not None and lost:
        kept_until = max((time for time, step in heard if step <= after.step), default=began)
    last_time = max(time for time, _ in heard)
    return Start(tuple(lines), last_step, last_time, max(gone, 0), lost, kept_until)


def _within(row: Row, began: datetime, until: datetime | None) -> bool:
    # A row carries the time of its writing, in milliseconds: so does the line.
    return row.time is not None and row.time >= began and (until is None or row.time < until)


def ledger_of(starts: Sequence[Start]) -> dict[str, float]:
    """Returns the seconds of all starts by account, without those that are zero."""
    total: dict[str, float] = {}
    for start in starts:
        for account, seconds in start.seconds.items():
            total[account] = total.get(account, 0.0) + max(seconds, 0.0)
    return total


def goodput(starts: Sequence[Start]) -> float | None:
    """Returns the share of the processes' time that went into steps which were kept.

    Time between two starts, in which nothing ran, is not theirs. None: nothing is known.
    """
    total = sum(start.total_s for start in starts)
    useful = sum(start.seconds.get("step", 0.0) - start.lost_s for start in starts)
    return max(useful, 0.0) / total if total > 0 else None


def mfu(starts: Sequence[Start]) -> float | None:
    """Returns the share of the devices' peak that training has used; None: not known.

    Validations, saves and compiling are left out, waits for data are not.
    """
    done = possible = 0.0
    for start in starts:
        facts = start.begin.facts
        kind, count = facts["devices"].get("kind"), facts["devices"].get("count")
        peak = peak_flops(kind) if isinstance(kind, str) else None
        if facts["flops_per_step"] is None or peak is None or type(count) is not int:
            return None
        done += facts["flops_per_step"] * start.steps_taken
        possible += peak * count * sum(start.seconds.get(name, 0.0) for name in TRAINING)
    return done / possible if possible > 0 else None


def downtime(starts: Sequence[Start]) -> timedelta:
    """Returns the time between starts, in which nothing was heard of the run."""
    pairs = zip(starts, starts[1:], strict=False)
    gaps = (later.began - earlier.last_time for earlier, later in pairs)
    return sum((max(gap, timedelta(0)) for gap in gaps), timedelta(0))
