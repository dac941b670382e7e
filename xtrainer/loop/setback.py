"""When has training gone so wrong that it is to go back? What ``rollback`` acts on."""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from xtrainer.data import LoaderPosition

_ROWS = 20
_LEAST_ROWS = 3


@dataclass(frozen=True)
class Setback:
    """Steps that training is to forget, and the batches it is not to see again.

    Attributes:
        first: The first of the steps.
        last: The last of them.
        batches: For each of their batches the pass of the loader, and its number in it, from 1.
        text: What has happened.
    """

    first: int
    last: int
    batches: tuple[tuple[int, int], ...]
    text: str

    @classmethod
    def of(cls, first: int, last: int, positions: Iterable[LoaderPosition], text: str) -> "Setback":
        """Returns the setback of steps, from the positions behind their batches."""
        return cls(first, last, tuple((p.pass_index, p.batches) for p in positions), text)


class Spikes:
    """The losses of the newest rows, by which a spike is told.

    Args:
        threshold: How many times their median a loss may be.

    Example:
        >>> spikes = Spikes(3.0)
        >>> [spikes.is_one(loss) for loss in (1.0, 1.2, 0.9, 1.1, 3.4, 1.0)]
        [False, False, False, False, True, False]
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.losses: deque[float] = deque(maxlen=_ROWS)

    def is_one(self, loss: float) -> bool:
        """Says whether a row's mean loss is a spike; otherwise it counts for the median."""
        if not math.isfinite(loss):
            return False  # the guard has seen to it
        if len(self.losses) >= _LEAST_ROWS:
            median = self.median()
            if median > 0 and loss > self.threshold * median:
                return True
        self.losses.append(loss)
        return False

    def median(self) -> float:
        """Returns the median of the rows."""
        return float(np.median(self.losses))
