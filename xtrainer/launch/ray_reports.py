"""How does what a worker reports reach the program that waits? Through an actor that it asks."""

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from xtrainer.errors import MetricError
from xtrainer.types import HostMetrics

_POLL_S = 0.5
_STOP_S = 60.0

_LOG = logging.getLogger(__name__)


def host_row(metrics: Mapping[str, Any]) -> HostMetrics:
    """Returns the metrics as Python floats.

    Raises:
        MetricError: Naming the first one that is not one number.

    Example:
        >>> host_row({"loss": np.float32(0.5)})
        {'loss': 0.5}
    """
    row: HostMetrics = {}
    for key, value in metrics.items():
        try:
            if np.size(value) != 1 or isinstance(value, str | bytes):
                raise TypeError
            row[str(key)] = float(np.asarray(value).reshape(()))
        except (TypeError, ValueError):
            raise MetricError(
                f"The metric {key!r} is {value!r:.80} ({type(value).__name__}), expected one "
                "number. Reduce it before it is reported, or leave it out."
            ) from None
    return row


class Inbox:
    """Where process 0 puts what this machine asks for; a Ray actor."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, HostMetrics]] = []
        self._result: dict[str, Any] = {}

    def put(self, step: int, row: HostMetrics) -> None:
        """Keeps one report."""
        self._rows.append((step, row))

    def take(self) -> list[tuple[int, HostMetrics]]:
        """Returns the reports that nobody has taken yet."""
        rows, self._rows = self._rows, []
        return rows

    def finish(self, result: dict[str, Any]) -> None:
        """Keeps what the run gave."""
        self._result = result

    def result(self) -> dict[str, Any]:
        """Returns what the run gave."""
        return self._result


class Listener:
    """Takes the rows out of the inbox in a thread, since the main one waits in Ray.

    Args:
        ray: The imported package.
        inbox: The actor.
        on_report: Called with each row and its step.

    Attributes:
        history: All rows by step, those of one step merged.
    """

    def __init__(
        self, ray: Any, inbox: Any, on_report: Callable[[HostMetrics, int], None] | None
    ) -> None:
        self.history: dict[int, HostMetrics] = {}
        self._ray = ray
        self._inbox = inbox
        self._on_report = on_report
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="xtrainer-ray", daemon=True)

    def __enter__(self) -> "Listener":
        self._thread.start()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._ended.set()
        self._thread.join(_STOP_S)

    def _listen(self) -> None:
        last = False
        while not last:
            last = self._ended.wait(_POLL_S)  # what came before the end is still taken
            try:
                rows = self._ray.get(self._inbox.take.remote(), timeout=_STOP_S)
            except Exception:  # the run itself may be well
                _LOG.exception("The reports of the workers cannot be read any more.")
                return
            for step, row in rows:
                self._tell(step, row)

    def _tell(self, step: int, row: HostMetrics) -> None:
        self.history[step] = {**self.history.get(step, {}), **row}
        _LOG.info("step %d | %s", step, " | ".join(f"{k} {v:.4g}" for k, v in row.items()))
        if self._on_report is None:
            return
        try:
            self._on_report(dict(row), step)
        except Exception:  # hours of training are worth more than a broken display
            _LOG.exception("on_report failed at step %d and is not called any more.", step)
            self._on_report = None
