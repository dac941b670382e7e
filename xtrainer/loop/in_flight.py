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
        step, epochs_done, step_in_epoch: As in ``Progress``.
        position: Of the training loader.
    """

    step: int
    epochs_done: int
    step_in_epoch: int
    position: LoaderPosition

    @classmethod
    def of(cls, progress: Progress, position: LoaderPosition) -> "Moment":
        """Returns the present moment."""
        p = progress
        return cls(p.step, p.epochs_done, p.step_in_epoch, position)


class InFlight:
    """Steps that were dispatched and whose reports were not read yet.

    Reading a report waits for its step; with at most ``limit`` steps outstanding the host stays
    busy and the device's queue stays short. Unbounded queues abort multi-device CPU runs.

    Args:
        limit: Steps that may be outstanding.
        skipped: Steps that were refused before.
        examples: Rows that were trained on before.

    Attributes:
        newest: The newest report that was read.
        examples: Rows that were trained on up to it.
    """

    def __init__(self, limit: int, skipped: int = 0, examples: int = 0) -> None:
        self._limit = limit
        self.examples = examples
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
            self._read()
        return self.newest

    def drain(self) -> StepReport:
        """Waits for all steps and returns the report of the last."""
        while self._waiting:
            self._read()
        return self.newest

    def peek(self) -> StepReport:
        """Waits for all steps and returns the report of the last, without counting it as read."""
        return StepReport.fetch(self._waiting[-1]) if self._waiting else self.newest

    def _read(self) -> None:
        self.newest = StepReport.fetch(self._waiting.popleft())
        self.examples += self.newest.examples

    def moment(self, step: int) -> Moment:
        """Returns the moment after a step, for one of the newest steps."""
        return next(moment for moment in reversed(self._moments) if moment.step == step)
