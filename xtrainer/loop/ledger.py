"""Where does the time of a run go? Every second is in one account; they sum to the whole."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

_LOG = logging.getLogger(__name__)

ACCOUNTS = (
    "init",
    "restore",
    "compile",
    "data_wait",
    "step",
    "validation",
    "checkpoint",
    "logging",
    "callbacks",
    "idle",
)
"""``idle`` is what belongs to no other account."""
_SHARE = 0.1
_SHARE_AFTER_S = 30.0


class Ledger:
    """The seconds of a run by what they were spent on.

    The clock runs while anything is spent, from the outermost :meth:`spent` to its end; within it
    each moment counts for the innermost account.

    Args:
        clock: Returns seconds; any beginning.

    Attributes:
        seconds: By account.
        first_step: The accounts when the first step was done; empty before.
        earlier: The seconds of earlier processes of the run, by account.
        steps_before: Steps of the state that another run has taken, whose seconds are not here.
        details: By part within an account, such as a callback's class.
        waits: The seconds that steps and evaluations have waited for batches, by loader.
        beats: Counts what moves on within an account, such as the batches of a validation.

    Example:
        >>> times = iter([0.0, 1.0, 4.0, 6.0])
        >>> ledger = Ledger(lambda: next(times))
        >>> with ledger.spent("step"):
        ...     with ledger.spent("validation"):
        ...         pass
        >>> ledger.seconds["step"], ledger.seconds["validation"]
        (3.0, 3.0)
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[str, float] = {name: 0.0 for name in ACCOUNTS}
        self.first_step: dict[str, float] = {}
        self.details: dict[str, float] = {}
        self.waits: dict[str, float] = {}
        self.earlier: dict[str, float] = {}
        self.steps_before = 0.0
        self.beats = 0
        self._clock = clock
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def spent(self, account: str, detail: str | None = None) -> Iterator[None]:
        """Counts the time inside for an account, less what is spent on others inside it.

        Args:
            account: One of ``ACCOUNTS``.
            detail: A part that is counted by itself as well, with all that is inside.
        """
        begun = self._turn(account)
        try:
            yield
        finally:
            ended = self._turn(None)
            if detail is not None:
                self.details[detail] = self.details.get(detail, 0.0) + ended - begun

    def beat(self) -> None:
        """Says that something has moved on: a limit of time counts from here again."""
        self.beats += 1

    def now(self) -> tuple[str, float]:
        """Returns the account that is open now, and when that was last changed by its clock.

        May be called from another thread.
        """
        innermost = self._open[-1:]  # at once: it may be closed meanwhile
        return innermost[0] if innermost else "idle", self._since

    def move(self, source: str, target: str, seconds: float) -> None:
        """Counts seconds for another account than the one they were spent in."""
        self.seconds[source] -= seconds
        self.seconds[target] += seconds

    @contextmanager
    def waiting(self, loader: str) -> Iterator[None]:
        """Counts the time inside for ``data_wait``, and for a loader."""
        begun = self._turn("data_wait")
        try:
            yield
        finally:
            self.waits[loader] = self.waits.get(loader, 0.0) + self._turn(None) - begun

    def waited(self, loader: str, source: str, seconds: float) -> None:
        """Counts seconds for ``data_wait`` that were spent in another account, and whose fault."""
        self.move(source, "data_wait", seconds)
        self.waits[loader] = self.waits.get(loader, 0.0) + seconds

    def snapshot(self) -> dict[str, float]:
        """Returns the seconds by account up to now."""
        if self._open:
            now = self._clock()
            self.seconds[self._open[-1]] += now - self._since
            self._since = now
        return dict(self.seconds)

    def peek(self) -> dict[str, float]:
        """Returns the seconds by account up to now; from any thread, so that it changes nothing.

        Where an account is closed meanwhile, its last stretch may be left out.
        """
        seconds = dict(self.seconds)
        account, since = self.now()
        if self._open:
            seconds[account] += max(0.0, self._clock() - since)
        return seconds

    def to_json(self) -> dict[str, float]:
        """Returns the seconds of the run by account, those of earlier processes too."""
        now = self.snapshot()
        before = {"steps_before": self.steps_before} if self.steps_before else {}
        return before | {
            name: self.earlier.get(name, 0.0) + seconds for name, seconds in now.items()
        }

    def load_json(self, saved: Mapping[str, Any]) -> None:
        """Takes what earlier processes of the run have spent."""
        self.earlier = {name: float(saved[name]) for name in ACCOUNTS if name in saved}
        self.steps_before = float(saved.get("steps_before", 0.0))

    def mean_step_s(self, step: int) -> float:
        """Returns the seconds per step of the run, earlier processes included; 0 before the first.

        Args:
            step: The newest step of the state.
        """
        steps = step - self.steps_before
        spent = self.earlier.get("step", 0.0) + self.peek()["step"]
        return spent / steps if steps > 0 else 0.0

    @property
    def total(self) -> float:
        """All seconds up to the last change of account."""
        return sum(self.seconds.values())

    def shares(self) -> dict[str, float]:
        """Returns the share of each account; they sum to 1, where any time was spent."""
        total = self.total
        return {name: seconds / total if total else 0.0 for name, seconds in self.seconds.items()}

    def summary(self) -> str:
        """Returns one line: the whole, then the accounts with any time, largest first."""
        order = sorted(self.shares().items(), key=lambda item: -item[1])
        parts = [f"{name} {share:.1%}" for name, share in order if share >= 0.0005]
        return f"{self.total:.1f} s: {', '.join(parts)}"

    def warn_of_large_parts(self) -> None:
        """Says which parts have taken more than a tenth of a run that is not too short to tell."""
        total = self.total
        for name, seconds in self.waits.items():
            if total > _SHARE_AFTER_S and seconds > _SHARE * total:
                _LOG.warning(
                    "The run is data-bound: it has waited %.1f s, %.0f %% of its time, for the %r "
                    "loader. Let it do less for a batch, or work in several threads or processes.",
                    seconds, 100 * seconds / total, name,
                )  # fmt: skip
        for name, seconds in self.details.items():
            if total > _SHARE_AFTER_S and seconds > _SHARE * total:
                _LOG.warning(
                    "%s took %.1f s, %.0f %% of the run. Make it faster, or let it be due less "
                    "often (every_n_epochs, every_n_steps of its config).",
                    name, seconds, 100 * seconds / total,
                )  # fmt: skip

    def _turn(self, account: str | None) -> float:
        """Closes the open account and opens another one, or the one around it."""
        now = self._clock()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        if account is None:
            self._open.pop()
        else:
            self._open.append(account)
        self._since = now
        return now
