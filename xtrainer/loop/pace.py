"""Which process holds the others up? One that is busy with its own while they wait in a step.

All processes of a run take the same steps, so none is ever seen to be faster. What tells a slow
one is that it spends its time on what it does by itself (its loader, callbacks, logging), while the
others spend theirs in steps, where they wait for it. A device that is slow does not show in this
way: its process waits in a step as all do.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from xtrainer.launch import board
from xtrainer.launch.exchange import num_processes, runtime_process
from xtrainer.launch.inquiry import place
from xtrainer.loop.ledger import Ledger

_LOG = logging.getLogger(__name__)

WINDOW_S = 10.0
"""Seconds over which a process is looked at."""
_OWN = ("data_wait", "callbacks", "logging")
_STEP = "step"
_TOPIC = "pace"
_SHARE, _TIMES = 0.5, 3.0
"""A process is slow with this share of its time, and as many times that of the others."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """What a process has spent its time on in a window.

    Attributes:
        own_s: Seconds of its own by account of the ledger.
        step_s: Seconds in steps, where it may have waited for others.
        place: Where it is.
    """

    own_s: Mapping[str, float] = field(default_factory=dict)
    step_s: float = 0.0
    place: str = ""

    @property
    def share(self) -> float:
        """The share of its own of all it has spent on training."""
        own_s = sum(self.own_s.values())
        total = own_s + self.step_s
        return own_s / total if total > 0 else 0.0


class Slow(NamedTuple):
    """A process that the others wait for."""

    process: int
    pace: Pace
    others: float

    def __str__(self) -> str:
        """Returns what it does, and what to do about it."""
        account = max(self.pace.own_s, key=lambda name: self.pace.own_s[name])
        return (
            f"Process {self.process} ({self.pace.place}) holds the others up: it spends "
            f"{self.pace.share:.0%} of its time outside of steps, most of it in {account!r}, the "
            f"others {self.others:.0%}. The run goes on at its pace. Look at what its machine does "
            f"beside, and at its share of the data."
        )


def slowest(paces: Mapping[int, Pace]) -> Slow | None:
    """Returns the process that holds the others up, None if there is no such one.

    Args:
        paces: Of all processes in the same window, about.

    Example:
        >>> fast = Pace(own_s={"data_wait": 0.1}, step_s=9.9)
        >>> slow = Pace(own_s={"data_wait": 8.9, "logging": 0.1}, step_s=1.0)
        >>> slowest({0: fast, 1: slow, 2: fast}).process
        1
        >>> slowest({0: slow, 1: slow, 2: slow}) is None
        True
    """
    if len(paces) < 2:
        return None
    process = max(paces, key=lambda i: paces[i].share)
    others = float(np.median([pace.share for i, pace in paces.items() if i != process]))
    if paces[process].share >= max(_SHARE, _TIMES * others):
        return Slow(process, paces[process], others)
    return None


class Paced(Protocol):
    """What is looked at."""

    ledger: Ledger
    first_step: bool


class PaceWatch:
    """Says what this process does, and on the main process who is slow; it ends nothing.

    Args:
        trainer: What is looked at, from any thread.
        window_s: Seconds of a window.
        clock: Returns seconds; any beginning.
    """

    def __init__(
        self,
        trainer: Paced,
        window_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._trainer, self._clock = trainer, clock
        self._window_s = WINDOW_S if window_s is None else window_s
        self._several = num_processes() > 1
        self._next = -math.inf
        self._before: dict[str, float] | None = None
        self._named: int | None = None

    def look(self) -> None:
        """Looks, where a window is over; does nothing for a process alone."""
        now = self._clock()
        if not self._several or now < self._next or self._trainer.first_step:
            return
        self._next = now + self._window_s
        seconds, before = self._trainer.ledger.peek(), self._before
        self._before = seconds
        if before is None:
            return
        spent = {name: max(0.0, seconds[name] - before[name]) for name in (*_OWN, _STEP)}
        pace = Pace(step_s=spent.pop(_STEP), own_s=spent, place=place())
        board.put_up(_TOPIC, asdict(pace))
        if runtime_process() == 0:
            said: Mapping[int, Any] = board.read_all(_TOPIC)
            self._tell({i: Pace(**value) for i, value in said.items()})

    def _tell(self, paces: Mapping[int, Pace]) -> None:
        slow = slowest(paces)
        if slow is not None and slow.process != self._named:
            _LOG.warning("%s", slow)
        elif slow is None and self._named is not None:
            _LOG.info("Process %d keeps up with the others again.", self._named)
        self._named = None if slow is None else slow.process
