"""When does something else happen than a step, and how many steps are taken until then at once?"""

import math
from collections.abc import Callable, Sequence

_MAX_SIZES = 4
_LOOKS_AHEAD = 1000

NextStep = Callable[[int], int | None]
"""From a step to the next one after it at which something is due; None: never."""


def every(steps: int) -> NextStep:
    """Returns what is due at the multiples of a number.

    Example:
        >>> every(10)(0), every(10)(10), every(10)(11)
        (10, 20, 20)
    """
    return lambda step: step - step % steps + steps


class Agenda:
    """The steps after which the loop has something to do, and the sizes of its dispatches.

    A dispatch of several steps ends where something is due. The steps in between are divided
    evenly, so that few sizes are met, each of which is compiled: 50 steps in dispatches of at most
    32 are 25 and 25. Where that would still be more than four sizes they are powers of two.

    Args:
        due: Everything that is due at some steps.
        most: Steps of a dispatch, at most.
        first: The step that the run stands at.
        last: The step that it ends with, where it is known.
        per_epoch: Steps of an epoch, where they are known: it ends a dispatch as well.

    Example:
        >>> agenda = Agenda([every(50)], most=32)
        >>> agenda.size(0, None), agenda.size(25, None), agenda.sizes
        (25, 25, (25,))
    """

    def __init__(
        self,
        due: Sequence[NextStep],
        most: int = 1,
        first: int = 0,
        last: int | None = None,
        per_epoch: int | None = None,
    ) -> None:
        self._due = list(due)
        self._most = most
        self._by_two = False
        self.sizes: tuple[int, ...] = self._foresee(first, last, per_epoch)
        if len(self.sizes) > _MAX_SIZES:
            self._by_two = True
            self.sizes = self._foresee(first, last, per_epoch)

    def next_after(self, step: int) -> int | None:
        """Returns the next step after which something is due, None where there is none."""
        found = [following for due in self._due if (following := due(step)) is not None]
        return min(found, default=None)

    def size(self, step: int, left: int | None) -> int:
        """Returns how many steps the next dispatch takes.

        Args:
            step: The step that the run stands at.
            left: Steps until the epoch, the pass or the run ends; None: not known.
        """
        if self._most == 1:
            return 1
        following = self.next_after(step)
        limits = [] if following is None else [following - step]
        limits += [] if left is None else [max(left, 1)]
        distance = min(limits, default=self._most)
        if self._by_two:
            return 1 << (min(distance, self._most).bit_length() - 1)
        return math.ceil(distance / math.ceil(distance / self._most))

    def _foresee(self, first: int, last: int | None, per_epoch: int | None) -> tuple[int, ...]:
        """Returns the sizes that a run meets, as far as they are looked ahead to."""
        if self._most == 1:
            return (1,)
        sizes, step = set(), first
        for _ in range(_LOOKS_AHEAD):
            left = [] if last is None else [last - step]
            left += [] if per_epoch is None else [per_epoch - step % per_epoch]
            if last is not None and step >= last:
                break
            size = self.size(step, min(left, default=None))
            sizes.add(size)
            step += size
        return tuple(sorted(sizes, reverse=True))
