"""When is a tool told of a row? At once, or together with others where they come fast."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from xtrainer.loggers.base import LoggerTool
from xtrainer.loggers.media import Cell
from xtrainer.types import JSON, HostMetrics


class RowBuffer(LoggerTool):
    """Gives a tool its rows of training in bursts, which cost a quarter of as many single ones.

    A row is kept if it comes sooner than ``interval_s`` after the last burst; it is given on with
    the first one that does not, and before anything else is.

    Args:
        tool: Who is told.
        interval_s: Seconds between two bursts, at the least.
        clock: Seconds, monotonic.
    """

    def __init__(
        self, tool: LoggerTool, interval_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.tool = tool
        self.interval_s = interval_s
        self._clock = clock
        self._rows: list[tuple[HostMetrics, int, str, int]] = []
        self._given_at = -float("inf")

    @property
    def kind(self) -> str:
        """That of the tool."""
        return self.tool.kind

    def open(self) -> None:
        """Opens the tool."""
        self.tool.open()

    def log_config(self, config: Mapping[str, JSON]) -> None:
        """Gives the config on."""
        self._give()
        self.tool.log_config(config)

    def log_metrics(self, metrics: HostMetrics, step: int, mode: str, epoch: int) -> None:
        """Gives a row on, or keeps one of training for a while."""
        self._rows.append((metrics, step, mode, epoch))
        now = self._clock()
        if mode != "train" or now - self._given_at >= self.interval_s:
            self._given_at = now
            self._give()

    def log_text(self, key: str, text: str, step: int) -> None:
        """Gives a text on."""
        self._give()
        self.tool.log_text(key, text, step)

    def log_model(self, table: str) -> None:
        """Gives the table of parameters on."""
        self._give()
        self.tool.log_model(table)

    def log_image(self, key: str, image: np.ndarray, step: int) -> None:
        """Gives an image on."""
        self._give()
        self.tool.log_image(key, image, step)

    def log_histogram(self, key: str, counts: np.ndarray, edges: np.ndarray, step: int) -> None:
        """Gives a histogram on."""
        self._give()
        self.tool.log_histogram(key, counts, edges, step)

    def log_table(
        self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], step: int
    ) -> None:
        """Gives a table on."""
        self._give()
        self.tool.log_table(key, columns, rows, step)

    def log_best(self, metrics: HostMetrics, step: int) -> None:
        """Gives the best values on."""
        self._give()
        self.tool.log_best(metrics, step)

    def flush(self) -> None:
        """Gives on what was kept, and flushes the tool."""
        self._give()
        self.tool.flush()

    def state_dict(self) -> dict[str, JSON]:
        """Gives on what was kept, and returns what the tool has to keep."""
        self._give()
        return self.tool.state_dict()

    def load_state_dict(self, state: Mapping[str, Any], step: int) -> None:
        """Takes the tool back."""
        self._give()
        self.tool.load_state_dict(state, step)

    def finalize(self, status: str) -> None:
        """Gives on what was kept, and closes the tool in any case."""
        try:
            self._give()
        finally:
            self.tool.finalize(status)

    def _give(self) -> None:
        rows, self._rows = self._rows, []
        for row in rows:
            self.tool.log_metrics(*row)
