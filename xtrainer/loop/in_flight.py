"""How far may the host run ahead? A bounded queue of steps whose reports are not read yet."""

from collections import deque
from typing import NamedTuple

import jax

from xtrainer.data import LoaderPosition
from xtrainer.state import Progress
from xtrainer.step import StepReport


class Moment(NamedTuple):
    """Where a run stood after a step.

    Attributes:
        step, epochs_done, step_in_epoch, examples: As in ``Progress``.
        position: Of the training loader.
    """

    step: int
    epochs_done: int
    step_in_epoch: int
    examples: int
    position: LoaderPosition

    @classmethod
    def of(cls, progress: Progress, position: LoaderPosition) -> "Moment":
        """Returns the present moment."""
        p = progress
        return cls(p.step, p.epochs_done, p.step_in_epoch, p.examples, position)


class InFlight:
    """Steps that were dispatched and whose reports were not read yet.

    Reading a report waits for its step; with at most ``limit`` steps outstanding the host stays
    busy and the device's queue stays short. Unbounded queues abort multi-device CPU runs.

    Args:
        limit: Steps that may be outstanding.
        skipped: Steps that were refused before.
    """

    def __init__(self, limit: int, skipped: int = 0) -> None:
        self._limit = limit
        self._waiting: deque[jax.Array] = deque()
        self._moments: deque[Moment] = deque(maxlen=limit + 2)
        self.newest = StepReport(0, skipped, 0, 0)

    def start(self, moment: Moment) -> None:
        """Begins at a moment at which nothing is outstanding."""
        self._moments.clear()
        self._moments.append(moment)

    def push(self, report: jax.Array, moment: Moment) -> StepReport:
        """Adds a dispatched step and returns the newest report that had to be read."""
        self._waiting.append(report)
        self._moments.append(moment)
        while len(self._waiting) > self._limit:
            self.newest = StepReport.fetch(self._waiting.popleft())
        return self.newest

    def drain(self) -> StepReport:
        """Waits for all steps and returns the report of the last."""
        if self._waiting:
            self.newest = StepReport.fetch(self._waiting[-1])
            self._waiting.clear()
        return self.newest

    def moment(self, step: int) -> Moment:
        """Returns the moment after a step, for one of the newest steps."""
        return next(moment for moment in reversed(self._moments) if moment.step == step)
