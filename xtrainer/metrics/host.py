"""What do the gathered sums say? Fetched late, merged and finished in float64 on the host."""

from dataclasses import dataclass
from typing import Literal

import jax
import numpy as np

from xtrainer.metrics.accumulate import (
    COUNT,
    COUNT_LOW,
    LAST,
    MAX,
    MEAN,
    MIN,
    SQUARES,
    STEPS,
    SUM,
    SUM_LOW,
    DeviceMetrics,
    MetricLayout,
)
from xtrainer.types import HostMetrics


def start_to_host(array: jax.Array) -> None:
    """Begins to copy an array to the host, so that :func:`to_host` finds it there later."""
    if not _is_on_cpu(array):
        array.copy_to_host_async()


def to_host(array: jax.Array) -> np.ndarray:
    """Returns the values of an array that every device holds whole; waits for them."""
    if _is_on_cpu(array):
        return np.asarray(array)  # no transfer; device_get takes ten times as long to find that out
    return np.asarray(jax.device_get(array))


def _is_on_cpu(array: jax.Array) -> bool:
    return next(iter(array.sharding.device_set)).platform == "cpu"


@dataclass(frozen=True)
class HostWindow:
    """A window of metrics on the host.

    Attributes:
        layout: Names and log modes.
        columns: float64 ``(metrics, NUM_COLUMNS)``; low parts are folded into the high ones.
    """

    layout: MetricLayout
    columns: np.ndarray

    @classmethod
    def fetch(cls, window: DeviceMetrics) -> "HostWindow":
        """Returns a device window on the host; waits for the step that made it."""
        columns = to_host(window.packed).astype(np.float64)
        columns[:, SUM] += columns[:, SUM_LOW]
        columns[:, COUNT] += columns[:, COUNT_LOW]
        columns[:, SUM_LOW] = columns[:, COUNT_LOW] = 0.0
        return cls(window.layout, columns)

    def merge(self, later: "HostWindow | None") -> "HostWindow":
        """Returns this window followed by a later one of the same layout (Chan et al., 1979)."""
        if later is None:
            return self
        a, b = self.columns, later.columns
        steps = a[:, STEPS] + b[:, STEPS]
        share = np.divide(b[:, STEPS], steps, out=np.zeros_like(steps), where=steps > 0)
        delta = b[:, MEAN] - a[:, MEAN]
        merged = a + b
        merged[:, LAST] = np.where(b[:, STEPS] > 0, b[:, LAST], a[:, LAST])
        merged[:, MAX] = np.maximum(a[:, MAX], b[:, MAX])
        merged[:, MIN] = np.minimum(a[:, MIN], b[:, MIN])
        merged[:, MEAN] = a[:, MEAN] + delta * share
        merged[:, SQUARES] = a[:, SQUARES] + b[:, SQUARES] + delta**2 * a[:, STEPS] * share
        merged[:, STEPS] = steps
        return HostWindow(self.layout, merged)


def finish(
    window: HostWindow,
    modes: tuple[str, ...] | None = None,
    missing: Literal["omit", "nan"] = "omit",
) -> HostMetrics:
    """Returns the metrics of a window under the names they are logged by.

    ``mean_nopostfix`` gives ``loss``, every other mode ``loss_MODE``. A mean is the sum of all
    weighted values over the sum of all weights; ``std`` is the population's, over steps.

    Args:
        window: The fetched window.
        modes: Modes for every metric; those of the layout where None.
        missing: What a metric gives that no step measured: no entry, or NaN.
    """
    metrics: HostMetrics = {}
    for row, name, chosen in zip(
        window.columns, window.layout.names, window.layout.modes, strict=True
    ):
        measured = row[STEPS] > 0
        if not measured and missing == "omit":
            continue
        for mode in modes or chosen:
            key = name if mode == "mean_nopostfix" else f"{name}_{mode}"
            metrics[key] = _value(row, mode) if measured else float("nan")
    return metrics


def _value(row: np.ndarray, mode: str) -> float:
    if mode in ("mean", "mean_nopostfix"):
        return float(row[SUM] / row[COUNT])
    if mode == "std":
        return float(np.sqrt(max(row[SQUARES], 0.0) / row[STEPS]))
    return float(row[{"single": LAST, "max": MAX, "min": MIN, "sum": SUM}[mode]])
