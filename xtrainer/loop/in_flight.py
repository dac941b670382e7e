"""How far may the host run ahead? A bounded queue of dispatches whose reports are not read yet."""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from xtrainer.data import LoaderPosition
from xtrainer.metrics import start_to_host, to_host
from xtrainer.state import Progress
from xtrainer.step import PlacedBatch, StepReport


class Refused(NamedTuple):
    """A step that the guard has refused.

    Attributes:
        step: Its number.
        batch: Its batch.
        position: Of the training loader before that batch.
    """

    step: int
    batch: PlacedBatch
    position: LoaderPosition


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
    """Dispatches that were made and whose reports were not read yet.

    Reading a report waits for its steps; with at most ``limit`` dispatches outstanding the host
    stays busy and the device's queue stays short. Unbounded queues abort multi-device CPU runs.

    Args:
        limit: Dispatches that may be outstanding.
        skipped: Steps that were refused before.
        examples: Rows that were trained on before.
        steps: Steps of a dispatch, at most.
        step: The step that the run stands at.
        keep: Steps before those whose positions are kept too.

    Attributes:
        examples: Rows that were trained on up to the newest step that was read.
        trouble: Whether a step was refused that was read with it, or the run has ended with it.
        refused: Refused steps that were read since :meth:`take_refused`.
    """

    def __init__(
        self,
        limit: int,
        skipped: int = 0,
        examples: int = 0,
        steps: int = 1,
        step: int = 0,
        keep: int = 0,
    ) -> None:
        self.examples = examples
        self.trouble = False
        self.refused: list[Refused] = []
        self._on_cpu = jax.default_backend() == "cpu"
        self._limit = limit
        # With each report the batches, which are looked at again where one is refused.
        self._waiting: deque[tuple[jax.Array, Sequence[PlacedBatch]]] = deque()
        # The positions behind the newest steps, and the moment that their numbers count from.
        self._positions: deque[LoaderPosition] = deque(maxlen=(limit + 2) * steps + keep)
        self._start: Moment | None = None
        self._dispatched = 0
        self._newest = [step, skipped, 0, 0, 0, 0, 0]

    @property
    def newest(self) -> StepReport:
        """The newest report that was read."""
        return StepReport(*self._newest)

    def start(self, moment: Moment) -> None:
        """Begins at a moment at which nothing is outstanding."""
        if moment.step != self._dispatched:
            self._positions.clear()
        self._start = moment
        self._dispatched = moment.step

    def push(
        self,
        report: jax.Array,
        positions: Sequence[LoaderPosition],
        batches: Sequence[PlacedBatch] = (),
    ) -> bool:
        """Adds a dispatch, and reads the oldest where too many are outstanding.

        Args:
            report: int32 ``(7,)``, or ``(steps, 7)`` of several steps.
            positions: Of the loader behind each of the steps.
            batches: Of each of the steps.

        Returns:
            Whether a step was refused that was read, or the run has ended with it.
        """
        if not self._on_cpu:
            start_to_host(report)
        self._waiting.append((report, batches))
        self._positions.extend(positions)
        self._dispatched += len(positions)
        if len(self._waiting) > self._limit:
            self._read()
        return self.trouble

    def drain(self) -> StepReport:
        """Waits for all steps and returns the report of the last."""
        while self._waiting:
            self._read()
        return self.newest

    def peek(self) -> StepReport:
        """Waits for all steps and returns the report of the last, without counting it as read."""
        return StepReport.fetch(self._waiting[-1][0]) if self._waiting else self.newest

    def moment(self, step: int) -> Moment:
        """Returns the moment after a step, for one of the newest steps."""
        start = self._start
        if start is None or step == start.step:
            return start or Moment(step, 0, step, LoaderPosition())
        position = self._positions[step - self._dispatched - 1]
        in_epoch = start.step_in_epoch + step - start.step
        return Moment(step, start.epochs_done, in_epoch, position)

    def positions(self, first: int, last: int) -> list[LoaderPosition]:
        """Returns the positions behind the batches of steps, of those that are kept."""
        end = self._dispatched + 1
        found = range(max(first, end - len(self._positions)), last + 1)
        return [self._positions[step - end] for step in found]

    def _read(self) -> None:
        array, batches = self._waiting.popleft()
        before = self._newest[1]
        # On a CPU there is nothing to transfer; asking for it takes longer than to look.
        report = np.asarray(array) if self._on_cpu else to_host(array)
        if report.ndim == 1:
            self._newest = newest = report.tolist()
            self.examples += newest[6]
        else:
            self._newest = newest = report[-1].tolist()
            self.examples += int(report[:, 6].sum())
        self.trouble = newest[2] > 0 or newest[4] > 0
        if newest[1] > before and batches:
            self._note_refused(np.atleast_2d(report).tolist(), batches, before)
            self.trouble |= bool(self.refused)

    def take_refused(self) -> list[Refused]:
        """Returns the refused steps that were read since it was asked for them."""
        refused, self.refused = self.refused, []
        return refused

    def _note_refused(
        self, rows: list[list[int]], batches: Sequence[PlacedBatch], before: int
    ) -> None:
        for row, batch in zip(rows, batches, strict=True):
            _, skipped, consecutive, first, *_ = row
            if skipped > before and consecutive:  # else it has but lowered the scale of the loss
                step = first + consecutive - 1
                self.refused.append(Refused(step, batch, self.moment(step - 1).position))
            before = skipped
