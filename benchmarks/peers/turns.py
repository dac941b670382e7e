"""How does a peer take turns with a bare loop? As ``benchmarks.against.Turns`` does.

A hook of the peer calls :meth:`Turns.change` every so many steps.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import jax

from benchmarks.measure import Pairs


class Loop(Protocol):
    """A hand-written loop."""

    def run(self, steps: int) -> float:
        """Takes some steps and returns their seconds."""
        ...


class Turns:
    """The times of both sides.

    Args:
        bare: The hand-written loop.
        steps: Steps of a turn.
        wait: Waits for the peer's state.

    Attributes:
        spans: Beginning and end of the peer's turns, the first one left out: it compiles.
        bare_s: Seconds of the bare loop's turns, the first one left out as well.
        asked: When the peer asked for each batch, where :meth:`timed` gives them.
    """

    def __init__(
        self, bare: Loop, steps: int, wait: Callable[[Any], Any] = jax.block_until_ready
    ) -> None:
        self.bare, self.steps, self.wait = bare, steps, wait
        self.spans: list[tuple[float, float]] = []
        self.bare_s: list[float] = []
        self.asked: list[float] = []
        self.start: float | None = None

    def change(self, state: Any) -> None:
        """Ends a turn and begins the next."""
        self.wait(state)
        if self.start is not None:
            self.spans.append((self.start, time.perf_counter()))
        seconds = self.bare.run(self.steps)
        if self.start is not None:
            self.bare_s.append(seconds)
        self.start = time.perf_counter()

    def timed(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Gives the batches and notes when each was asked for, which is once a step."""
        for batch in batches:
            self.asked.append(time.perf_counter())
            yield batch

    @property
    def peer_s(self) -> list[float]:
        """Seconds of the peer's turns."""
        return [end - start for start, end in self.spans]

    @property
    def pairs(self) -> Pairs:
        """Seconds a step of both sides, without the turn that warms up."""
        scale = 1 / self.steps
        return Pairs([s * scale for s in self.bare_s[1:]], [s * scale for s in self.peer_s[1:]])
