"""What does a person who waits for a run want to know? Numbers that the host has anyway."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from xtrainer.types import HostMetrics

_WINDOW_S = 30.0
_MOST_METRICS = 4


@dataclass
class Facts:
    """What is known of a run at one moment; None where it is not.

    Attributes:
        title: What is going on: ``train``, or the name of a set that is evaluated.
        step: Training steps done.
        total: Those of the run.
        batches: Batches done of an evaluation that is under way, and how many it has.
        epoch: The one under way.
        loss: Of the newest row of training.
        learning_rate: Of the newest row.
        steps_per_s: Of training, lately.
        examples_per_s: The same in rows of batches.
        tokens_per_s: As the newest row has it, see ``ThroughputConfig.tokens_per_example``.
        left_s: Seconds until the last step, validations to come included.
        spent_s: Seconds since training began.
        validation: The newest one's step and metrics.
        checkpoint: The newest one's step and its age in seconds.
        refused: Steps that the guard has refused.
        waits: What the run has been waiting for, and the seconds.
    """

    title: str = "train"
    step: int = 0
    total: int | None = None
    batches: tuple[int, int | None] | None = None
    epoch: int = 0
    loss: float | None = None
    learning_rate: float | None = None
    steps_per_s: float | None = None
    examples_per_s: float | None = None
    tokens_per_s: float | None = None
    left_s: float | None = None
    spent_s: float = 0.0
    validation: tuple[int, HostMetrics] | None = None
    checkpoint: tuple[int, float] | None = None
    refused: int = 0
    waits: tuple[str, float] | None = None

    @property
    def share(self) -> float | None:
        """How much of the run is done, 0 to 1."""
        return min(self.step / self.total, 1.0) if self.total else None

    def newest(self) -> list[str]:
        """Returns what the newest row and the clock say, a few words each."""
        rates = [
            (self.steps_per_s, "steps/s"),
            (self.examples_per_s, "examples/s"),
            (self.tokens_per_s, "tokens/s"),
        ]
        parts = [f"epoch {self.epoch:,}"] if self.epoch else []
        parts += [f"loss {self.loss:.4g}"] if self.loss is not None else []
        parts += [f"lr {self.learning_rate:.3g}"] if self.learning_rate is not None else []
        return parts + [f"{short(rate)} {unit}" for rate, unit in rates if rate is not None]

    def validated(self) -> list[str]:
        """Returns what the newest validation has found, a few words each."""
        if self.validation is None:
            return []
        step, metrics = self.validation
        values = [f"{name} {value:.4g}" for name, value in main_metrics(metrics).items()]
        return [f"validation at step {step:,}: {values[0]}", *values[1:]] if values else []

    def saved(self) -> list[str]:
        """Returns what else is to be known: checkpoint, refused steps, what is waited for."""
        parts = []
        if self.checkpoint is not None:
            step, age_s = self.checkpoint
            parts.append(f"checkpoint at step {step:,}, {duration(age_s)} ago")
        if self.refused:
            parts.append(f"{self.refused:,} refused step{'s' if self.refused > 1 else ''}")
        if self.waits is not None:
            parts.append(f"{self.waits[0]} {duration(self.waits[1])}")
        return parts


@dataclass
class Pace:
    """How fast steps are taken, from a look at the run now and then.

    A step counts for the time in which training goes on; evaluations are pauses. The beginning, up
    to the first step that is seen, is left out: it compiles.

    Args:
        step: At the beginning.
        now: Seconds then.

    Example:
        >>> pace = Pace(step=0, now=0.0)
        >>> for second in (5.0, 6.0, 7.0):
        ...     pace.look(now=second, step=int(second - 4), trains=True)
        >>> pace.steps_per_s(), pace.left_s(total=13)
        (1.0, 10.0)
    """

    step: int
    now: float
    trained_s: float = 0.0
    paused_s: float = 0.0
    marks: deque[tuple[float, int]] = field(default_factory=deque)

    def look(self, now: float, step: int, trains: bool) -> None:
        """Notes how far the run is."""
        passed, self.now = now - self.now, now
        if self.marks and trains:
            self.trained_s += passed
        elif self.marks:
            self.paused_s += passed
        if step < self.step:  # it has gone back to a checkpoint
            self.marks.clear()
        if step != self.step:
            self.marks.append((self.trained_s, step))
        self.step = step
        while len(self.marks) > 2 and self.trained_s - self.marks[1][0] > _WINDOW_S:
            self.marks.popleft()

    def steps_per_s(self) -> float | None:
        """Returns the steps a second of the last half minute, or of the last two that were seen."""
        if len(self.marks) < 2:
            return None
        (begun_s, first), (seen_s, last) = self.marks[0], self.marks[-1]
        steps = last - first
        # Where the next one takes longer than those before it is as if it were done just now.
        seconds = max(seen_s - begun_s, (self.trained_s - begun_s) * steps / (steps + 1))
        return steps / seconds if seconds > 0 else None

    def left_s(self, total: int | None) -> float | None:
        """Returns the seconds until the last step, with pauses as there have been so far."""
        rate = self.steps_per_s()
        if rate is None or total is None or self.step >= total:
            return None
        pauses = self.paused_s / self.trained_s if self.trained_s > 0 else 0.0
        return max(total - self.step, 0) / rate * (1.0 + pauses)


def main_metrics(metrics: Mapping[str, float]) -> HostMetrics:
    """Returns the few metrics that are shown: the losses first, measured times left out.

    Example:
        >>> main_metrics({"accuracy": 0.5, "loss": 1.0, "epoch_time_s": 3.0})
        {'loss': 1.0, 'accuracy': 0.5}
    """
    names = [name for name in metrics if not name.endswith("time_s")]
    names.sort(key=lambda name: not (name == "loss" or name.endswith("_loss")))
    return {name: metrics[name] for name in names[:_MOST_METRICS]}


def duration(seconds: float) -> str:
    """Returns a time as a person says it.

    Example:
        >>> duration(7.4), duration(187), duration(3 * 86400 + 7200)
        ('7 s', '3:07 min', '3 d 2 h')
    """
    whole = int(seconds + 0.5)
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if days:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours}:{minutes % 60:02} h"
    return f"{minutes}:{whole % 60:02} min" if minutes else f"{whole} s"


def short(rate: float) -> str:
    """Returns a rate in a few letters.

    Example:
        >>> short(0.0123), short(24.3), short(1234), short(79_012), short(3.2e9)
        ('0.0123', '24.3', '1,234', '79.0k', '3.20G')
    """
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if rate >= size:
            value = rate / min(size, 1e3 if letter == "k" else size)
            return f"{value:.3g}{letter}" if value >= 100 else f"{value:#.3g}{letter}"
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
