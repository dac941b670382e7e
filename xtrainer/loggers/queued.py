"""Who waits for a slow server? A thread of its own, never the run."""

import atexit
import logging
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from xtrainer.loggers.base import LoggerTool
from xtrainer.loggers.media import Cell
from xtrainer.loggers.waiting import ROWS, number_to_drop
from xtrainer.types import JSON, HostMetrics

_LOG = logging.getLogger(__name__)
_FLUSH_S = 2.0
_CLOSE_S = 30.0


class QueuedTool(LoggerTool):
    """Gives everything to a tool in a thread, in order; the caller never waits for a row.

    The tool is opened by the caller, so that what is wrong with it is told at once. After that at
    most 1000 calls wait, 20 of them with an image, and the oldest row makes room for a new one,
    which is counted and told.
    ``flush`` waits 2 s at most, and not again before the thread has come further; ``finalize``
    waits 30 s at most and says what was not delivered. An error of the tool is raised by the
    next call; give it a :class:`~xtrainer.loggers.guarded.GuardedTool` where it is not to be.

    Args:
        tool: Who is told.
        flush_s: Seconds that ``flush`` may take.
        close_s: Seconds that ``finalize`` may take.

    Attributes:
        dropped: Rows and texts that made room for newer ones, since the tool was opened.
    """

    def __init__(
        self, tool: LoggerTool, flush_s: float = _FLUSH_S, close_s: float = _CLOSE_S
    ) -> None:
        self.tool = tool
        self.flush_s = flush_s
        self.close_s = close_s
        self.dropped = 0
        self._waiting: deque[tuple[str, tuple[Any, ...]]] = deque()
        self._changed = threading.Condition()
        self._given = 0  # calls that the tool has been given, or dropped
        self._taken = 0  # calls that were made
        self._done = 0  # calls that the thread is done with
        self._stuck_at = -1  # as many were done when a flush last waited in vain
        self._thread: threading.Thread | None = None  # set to None by itself, with its last act
        self._error: BaseException | None = None

    @property
    def kind(self) -> str:
        """That of the tool."""
        return self.tool.kind

    def open(self) -> None:
        """Opens the tool and starts the thread.

        Raises:
            Exception: What the tool raises.
        """
        with self._changed:
            if self._is_running():  # left behind by ``finalize``
                self._put("open")
                return
        self.tool.open()
        self.dropped = 0
        # Threads that are no daemons would keep a program from its end while a server hangs.
        self._thread = threading.Thread(target=self._run, name=f"log-{self.tool.kind}", daemon=True)
        self._thread.start()
        atexit.register(self._deliver_at_exit)

    def log_config(self, config: Mapping[str, JSON]) -> None:
        """Gives the config on."""
        self._put("log_config", config)

    def log_metrics(self, metrics: HostMetrics, step: int, mode: str, epoch: int) -> None:
        """Gives a row on."""
        self._put("log_metrics", metrics, step, mode, epoch)

    def log_text(self, key: str, text: str, step: int) -> None:
        """Gives a text on."""
        self._put("log_text", key, text, step)

    def log_model(self, table: str) -> None:
        """Gives the table of parameters on."""
        self._put("log_model", table)

    def log_image(self, key: str, image: np.ndarray, step: int) -> None:
        """Gives an image on."""
        self._put("log_image", key, image, step)

    def log_histogram(self, key: str, counts: np.ndarray, edges: np.ndarray, step: int) -> None:
        """Gives a histogram on."""
        self._put("log_histogram", key, counts, edges, step)

    def log_table(
        self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], step: int
    ) -> None:
        """Gives a table on."""
        self._put("log_table", key, columns, rows, step)

    def log_best(self, metrics: HostMetrics, step: int) -> None:
        """Gives the best values on."""
        self._put("log_best", metrics, step)

    def flush(self) -> None:
        """Waits until the tool has been given everything, for a while."""
        if not self._is_running():
            return
        self._put("flush")
        with self._changed:
            if self._done != self._stuck_at and not self._wait(self.flush_s):
                self._stuck_at = self._done
                _LOG.warning(
                    "%s has not taken %d rows within %g s; the run goes on.", self.kind,
                    self._rows_waiting(), self.flush_s,
                )  # fmt: skip

    def state_dict(self) -> dict[str, JSON]:
        """Returns what the tool has to keep."""
        return self.tool.state_dict()

    def load_state_dict(self, state: Mapping[str, Any], step: int) -> None:
        """Takes the tool back: at once where it is not open."""
        if self._is_running():
            self._put("load_state_dict", state, step)
        else:
            self.tool.load_state_dict(state, step)

    def finalize(self, status: str) -> None:
        """Waits until everything is delivered and the tool is closed, for a while.

        Raises:
            Exception: What the tool has raised.
        """
        if not self._is_running():
            return
        self._put("finalize", status)
        with self._changed:
            if not self._wait(self.close_s):
                _LOG.error(
                    "%s hangs: %d rows and texts were not delivered within %g s, and it is left "
                    "behind.", self.kind, self._rows_waiting(), self.close_s,
                )  # fmt: skip
            if self.dropped:
                _LOG.error("%s was too slow: %d rows were dropped.", self.kind, self.dropped)
                self.dropped = 0
        atexit.unregister(self._deliver_at_exit)
        self._raise()

    def _put(self, name: str, *args: Any) -> None:
        self._raise()
        if not self._is_running():
            self.open()
        with self._changed:
            self._taken += 1
            self._waiting.append((name, args))
            if (number := number_to_drop(self._waiting)) is not None:
                self._drop(number)
            self._changed.notify_all()

    def _drop(self, number: int) -> None:
        if self._waiting[number][0] != "flush":
            if self.dropped == 0:
                _LOG.warning(
                    "%s is too slow: %d calls are waiting for it, and the oldest rows are dropped "
                    "from now on.", self.kind, len(self._waiting) - 1,
                )  # fmt: skip
            self.dropped += 1
        del self._waiting[number]
        self._given += 1

    def _rows_waiting(self) -> int:
        return sum(name in ROWS for name, _ in self._waiting)

    def _is_running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _wait(self, limit_s: float) -> bool:
        """Waits until all that was taken is given; the lock is held. Says whether it is."""
        return self._changed.wait_for(lambda: self._given == self._taken, limit_s)

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self) -> None:
        """Gives on what comes, until the tool is closed and nothing is left; in the thread."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                name, args = self._waiting.popleft()
            try:
                getattr(self.tool, name)(*args)
            except BaseException as error:
                self._error = self._error or error
            with self._changed:
                over = name == "finalize" and not self._waiting
                if over:
                    self._thread = None
                self._given += 1
                self._done += 1
                self._changed.notify_all()
            if over:
                return

    def _deliver_at_exit(self) -> None:
        """Gives what is left to a tool that nobody has closed, as after a mere evaluation."""
        with self._changed:
            if self._is_running():
                self._wait(self.close_s)
