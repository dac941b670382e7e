"""How has a run ended, how good was it, and how well did it use its time? In numbers."""

import os
import socket
from collections.abc import Sequence
from typing import NamedTuple

from xtrainer.loop import StopReason
from xtrainer.metrics import better_when
from xtrainer.report.curves import began, group_of, place_of
from xtrainer.report.run import Row, RunRecord, finite
from xtrainer.report.starts import Start, downtime, goodput, ledger_of, mfu, starts_of
from xtrainer.types import JSON


class Status(NamedTuple):
    """How a run stands.

    Attributes:
        word: ``finished``, ``stopped``, ``failed``, ``running``, ``ended without a word`` or
            ``not known``.
        text: A sentence.
        tone: ``good``, ``fair``, ``bad`` or ``none``: how it is coloured.
    """

    word: str
    text: str
    tone: str


class Result(NamedTuple):
    """A metric of a run.

    Attributes:
        mode: The set.
        name: The metric.
        last: Its newest value.
        last_step: The step of that.
        best: Its best finite value; None where nobody knows what is better, or there is none.
        best_step: The step of that.
        count: How many values there are.
    """

    mode: str
    name: str
    last: float
    last_step: int
    best: float | None
    best_step: int | None
    count: int


class Summary(NamedTuple):
    """A run in numbers.

    Attributes:
        status: How it stands.
        results: Its metrics, those of validations and tests first.
        steps: The newest step of the course that counts.
        epochs: Finished ones; None: not known.
        starts: Processes that have trained.
        lost_steps: Steps that were taken and are not in the state.
        refused_steps: Steps that the guard has refused.
        wall_s: Seconds from the first start to the newest sign of the run; None: not known.
        down_s: Of these, those in which no process of the run was there.
        ledger: Seconds of all starts by account.
        goodput: See :func:`goodput`.
        mfu: See :func:`mfu`.
    """

    status: Status
    results: list[Result]
    steps: int
    epochs: int | None
    starts: list[Start]
    lost_steps: int
    refused_steps: int
    wall_s: float | None
    down_s: float
    ledger: dict[str, float]
    goodput: float | None
    mfu: float | None

    def to_json(self) -> dict[str, JSON]:
        """Returns it as JSON; numbers that are not finite are texts."""
        number = lambda x: x if x is None or finite([x]) else repr(x)  # noqa: E731
        results: list[JSON] = [
            {**row._asdict(), "last": number(row.last), "best": number(row.best)}
            for row in self.results
        ]
        return {
            "status": self.status.word,
            "detail": self.status.text,
            "results": results,
            "steps": self.steps,
            "epochs": self.epochs,
            "starts": len(self.starts),
            "lost_steps": self.lost_steps,
            "refused_steps": self.refused_steps,
            "wall_s": self.wall_s,
            "down_s": self.down_s,
            "ledger_s": dict(self.ledger),
            "goodput": self.goodput,
            "mfu": self.mfu,
        }


def summarize(run: RunRecord) -> Summary:
    """Returns a run in numbers.

    Example:
        >>> from pathlib import Path
        >>> summarize(RunRecord(Path("runs/a"))).status.word
        'not known'
    """
    starts = starts_of(run)
    progress = run.meta.get("progress")
    epochs = progress.get("epochs_done") if isinstance(progress, dict) else None
    times = [row.time for row in run.rows if row.time] + [start.last_time for start in starts]
    origin = began(run)
    newest = starts[-1].last_step if starts else 0
    down_s = downtime(starts).total_seconds()
    return Summary(
        status_of(starts),
        results_of(run.rows),
        max([newest, *(row.step for row in run.rows), *(saved.step for saved in run.saved)]),
        epochs if type(epochs) is int else None,
        starts,
        sum(start.lost_steps for start in starts),
        _refused(run.rows, starts),
        (max(times) - origin).total_seconds() if origin is not None and times else None,
        down_s,
        ledger_of(starts),
        goodput(starts),
        mfu(starts) or _logged_mfu(run.rows),
    )


def status_of(starts: Sequence[Start]) -> Status:
    """Returns how a run stands, by the newest of its starts."""
    if not starts:
        return Status("not known", "No journal says how this run has ended.", "none")
    newest = starts[-1]
    if newest.stop is None:
        if is_alive(newest):
            return Status("running", f"It was last heard of at step {newest.last_step:,}.", "fair")
        text = (
            f"Nothing was written of its end: it was killed after step {newest.last_step:,}, or "
            "runs on another machine."
        )
        return Status("ended without a word", text, "bad")
    facts = newest.stop.facts
    if (name := facts["reason"]) not in StopReason.__members__:  # of a newer version
        return Status("stopped", str(name), "fair")
    reason = StopReason[name]
    text = f"{reason.value} {facts['detail']}".strip()
    if reason.completed:
        return Status("finished", text, "good")
    harmed = reason in (StopReason.NONFINITE, StopReason.UNSTABLE, StopReason.FAILED)
    word = "failed" if reason is StopReason.FAILED else "stopped"
    return Status(word, text, "bad" if harmed else "fair")


def is_alive(start: Start) -> bool:
    """Says whether the process of a start is known to be there, on this machine."""
    facts = start.begin.facts
    if facts["host"] != socket.gethostname() or not 0 < facts["pid"] < 2**31:
        return False
    try:
        os.kill(facts["pid"], 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is there, and somebody else's
        return True
    return True


def results_of(rows: Sequence[Row]) -> list[Result]:
    """Returns the newest and the best value of each metric, those of validations first."""
    seen: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for row in rows:
        for name, value in row.metrics.items():
            if group_of(place_of(name, row.mode)[0]) == "metrics":
                seen.setdefault((row.mode, name), []).append((row.step, value))
    order = {"test": 0, "val": 1, "train_epoch": 3, "train": 4}
    found = []
    for (mode, name), points in seen.items():
        direction, best = better_when(name), None
        good = [point for point in points if finite([point[1]])]
        if direction is not None and good:
            choose = min if direction == "min" else max
            best = choose(good, key=lambda point: point[1])
        step, last = points[-1]
        value, at = (None, None) if best is None else (best[1], best[0])
        found.append(Result(mode, name, last, step, value, at, len(points)))
    return sorted(found, key=lambda result: order.get(result.mode, 2))


def _refused(rows: Sequence[Row], starts: Sequence[Start]) -> int:
    logged = finite([row.metrics.get("skipped_steps", 0.0) for row in rows])
    counted = int(max(logged, default=0.0))
    told = [line for start in starts for line in start.lines if line.kind == "refused"]
    return max(counted, sum(line.facts["count"] for line in told))


def _logged_mfu(rows: Sequence[Row]) -> float | None:
    found = sorted(finite([row.metrics["mfu"] for row in rows if "mfu" in row.metrics]))
    return found[len(found) // 2] if found else None
