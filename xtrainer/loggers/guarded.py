"""What becomes of a run whose logging tool fails? It goes on; the tool is tried again for a while.

A full disk or a server that is away costs rows, and never the training.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from xtrainer.errors import MetricError
from xtrainer.loggers.base import LoggerTool
from xtrainer.loggers.media import Cell
from xtrainer.loggers.waiting import ROWS, number_to_drop
from xtrainer.types import JSON, HostMetrics

_LOG = logging.getLogger(__name__)
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0
_REPEAT_S = 60.0

LATE_ROWS = "late_rows"
"""In the state of a tool: rows of before that it may still be given, after the state was taken."""


class GuardedTool(LoggerTool):
    """Passes everything on to a tool, and takes its errors upon itself.

    What comes after an error is kept, the newest 1000 rows of it and the newest 20
    images, and given on in order when the
    tool is tried again: not before 1 s, then 2 s, and so on up to 60 s have passed, and never by
    waiting. A tool that has failed once more than ``retries`` times in a row is switched off. The
    first error is told with its traceback, later ones in a line a minute at most, and the number of
    lost rows when the tool is closed.

    What fails before the tool is open for the first time is raised: then nothing was trained yet.
    So is a :class:`MetricError`, which is a mistake of the caller.

    Args:
        tool: Who is told.
        retries: How often a tool is tried again before it is switched off.
        clock: Seconds, monotonic.

    Attributes:
        lost: Rows and texts that the tool was not given, since it was opened.

    Example:
        >>> guarded = GuardedTool(LoggerTool())
        >>> guarded.open()
        >>> guarded.log_metrics({"loss": 1.0}, 1, "train", 1)
        >>> guarded.lost
        0
    """

    def __init__(
        self, tool: LoggerTool, retries: int = 5, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.tool = tool
        self.retries = retries
        self.lost = 0
        self._clock = clock
        self._kept: deque[tuple[str, tuple[Any, ...]]] = deque()
        self._failures = 0  # in a row
        self._next_try = 0.0
        self._said_at: float | None = None
        self._unsaid = 0
        self._was_open = False
        self._is_off = False

    @property
    def kind(self) -> str:
        """That of the tool."""
        return self.tool.kind

    def open(self) -> None:
        """Opens the tool.

        Raises:
            Exception: What the tool raises, the first time.
        """
        if not self._was_open:
            self.tool.open()
            self._was_open = True
        elif not self._is_off:
            self._try(self.tool.open)

    def log_config(self, config: Mapping[str, JSON]) -> None:
        """Gives the config on."""
        self._pass_on("log_config", config)

    def log_metrics(self, metrics: HostMetrics, step: int, mode: str, epoch: int) -> None:
        """Gives a row on, or keeps it until the tool is tried again.

        Raises:
            MetricError: If the tool cannot take such a row at all.
        """
        self._pass_on("log_metrics", metrics, step, mode, epoch)

    def log_text(self, key: str, text: str, step: int) -> None:
        """Gives a text on, or keeps it."""
        self._pass_on("log_text", key, text, step)

    def log_model(self, table: str) -> None:
        """Gives the table of parameters on, or keeps it."""
        self._pass_on("log_model", table)

    def log_image(self, key: str, image: np.ndarray, step: int) -> None:
        """Gives an image on, or keeps it."""
        self._pass_on("log_image", key, image, step)

    def log_histogram(self, key: str, counts: np.ndarray, edges: np.ndarray, step: int) -> None:
        """Gives a histogram on, or keeps it."""
        self._pass_on("log_histogram", key, counts, edges, step)

    def log_table(
        self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], step: int
    ) -> None:
        """Gives a table on, or keeps it."""
        self._pass_on("log_table", key, columns, rows, step)

    def log_best(self, metrics: HostMetrics, step: int) -> None:
        """Gives the best values on, or keeps them."""
        self._pass_on("log_best", metrics, step)

    def flush(self) -> None:
        """Flushes the tool, unless it has failed and is not to be tried again yet."""
        if not self._is_off and self._give_kept():
            self._try(self.tool.flush)

    def state_dict(self) -> dict[str, JSON]:
        """Returns what the tool has to keep; an error of it costs no checkpoint.

        Rows that are kept for it are told as ``late_rows``.
        """
        try:
            state = self.tool.state_dict()
        except Exception as error:
            if not self._is_off and self._clock() >= self._next_try:
                self._failed(error)
            return {}
        late = sum(name in ROWS for name, _ in self._kept)
        return {**state, LATE_ROWS: late} if late else state

    def load_state_dict(self, state: Mapping[str, Any], step: int) -> None:
        """Takes the tool back.

        Raises:
            Exception: What the tool raises, before it was opened.
        """
        if self._was_open:
            self._pass_on("load_state_dict", state, step)
        else:
            self.tool.load_state_dict(state, step)

    def finalize(self, status: str) -> None:
        """Tries to give on what is kept, closes the tool, and says how many rows were lost."""
        self._next_try = 0.0
        self._give_kept()
        self._drop_kept()
        try:
            self.tool.finalize(status)
        except Exception as error:
            self._failed(error, at_end=True)
        if self.lost:
            _LOG.error("%s: %d rows were lost in all.", self.kind, self.lost)
        self.lost, self._failures, self._is_off = 0, 0, False  # whoever opens it again tries anew

    def _pass_on(self, name: str, *args: Any) -> None:
        if self._is_off:
            self.lost += name in ROWS
            return
        if not self._kept and not self._failures:
            try:
                getattr(self.tool, name)(*args)
                return
            except MetricError:
                raise
            except Exception as error:
                if name != "log_config":  # which may be what is wrong, and rows wait for no config
                    self._keep(name, args)
                self._failed(error)
        else:
            self._keep(name, args)
            self._give_kept()

    def _keep(self, name: str, args: tuple[Any, ...]) -> None:
        self._kept.append((name, args))
        if (number := number_to_drop(self._kept)) is not None:
            self.lost += self._kept[number][0] in ROWS
            del self._kept[number]

    def _drop_kept(self) -> None:
        self.lost += sum(name in ROWS for name, _ in self._kept)
        self._kept.clear()

    def _give_kept(self) -> bool:
        """Gives on what is kept, where it is time to; says whether the tool works."""
        if self._is_off or (self._failures and self._clock() < self._next_try):
            return False
        while self._kept:
            name, args = self._kept[0]
            try:
                getattr(self.tool, name)(*args)
            except MetricError as error:  # whoever gave it is not waiting for an answer any more
                _LOG.error("%s: a row was lost. %s", self.kind, error)
                self.lost += 1
            except Exception as error:
                if name == "log_config":
                    self._kept.popleft()
                self._failed(error)
                return False
            self._kept.popleft()
            self._works()
        return True

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:
            self._failed(error)
        else:
            self._works()

    def _works(self) -> None:
        if self._failures:
            _LOG.warning("%s works again.", self.kind)
        self._failures = 0

    def _failed(self, error: Exception, at_end: bool = False) -> None:
        self._failures += 1
        pause_s = min(_FIRST_PAUSE_S * 2.0 ** (self._failures - 1), _LONGEST_PAUSE_S)
        self._next_try = self._clock() + pause_s
        self._tell(error, "It is closed all the same." if at_end else self._plan(pause_s))
        if self._failures > self.retries and not at_end:
            self._is_off = True
            self._drop_kept()
            _LOG.error(
                "%s has failed %d times in a row and is switched off; training goes on without it. "
                "%d rows were lost so far; the last error: %s: %s", self.kind, self._failures,
                self.lost, type(error).__name__, error,
            )  # fmt: skip

    def _plan(self, pause_s: float) -> str:
        return (
            "Training goes on; what is logged meanwhile is kept, and the tool is tried again after "
            f"{pause_s:g} s, {self.retries} times at most."
        )

    def _tell(self, error: Exception, what_follows: str) -> None:
        """Logs an error: the first with its traceback, others in a line, at most one a minute."""
        now = self._clock()
        if self._said_at is None:
            _LOG.error("%s has failed. %s", self.kind, what_follows, exc_info=error)
        elif now - self._said_at < _REPEAT_S:
            self._unsaid += 1
            return
        else:
            more = f" ({self._unsaid} times since it was last told)" if self._unsaid else ""
            _LOG.error(
                "%s has failed again%s: %s: %s. %s", self.kind, more, type(error).__name__, error,
                what_follows,
            )  # fmt: skip
        self._said_at, self._unsaid = now, 0
