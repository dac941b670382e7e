"""What is kept of a step's metrics on the device? One packed array for all of them.

A metric of a step is a sum and a weight, the same pair the loss is made of. Sums and weights of a
window are kept as pairs of float32 numbers, a value and what rounding took from it (Knuth's
two-sum; Dekker, 1971, https://doi.org/10.1007/BF01397083), so that 2**31 tokens are counted exactly
and 200 000 steps do not drift. Maximum, minimum, last value and spread are those of the *step's
mean*, and so do not depend on accumulation, devices or processes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from xtrainer.errors import MetricError, did_you_mean

LOG_MODES = ("mean", "mean_nopostfix", "single", "max", "min", "sum", "std")
"""What can be logged of a metric over a window of steps."""

SUM, SUM_LOW, COUNT, COUNT_LOW, LAST, MAX, MIN, MEAN, SQUARES, STEPS = range(10)
"""Columns of the packed array; ``MEAN`` and ``SQUARES`` are Welford's."""
NUM_COLUMNS = 10


@dataclass(frozen=True)
class MetricLayout:
    """The names of the metrics, in the order of the packed array's rows, and what to log of each.

    Attributes:
        names: Metric names.
        modes: For each name, members of ``LOG_MODES``.
    """

    names: tuple[str, ...]
    modes: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, modes: Mapping[str, Sequence[str]]) -> "MetricLayout":
        """Returns the layout of metrics given with their log modes.

        Raises:
            MetricError: For a mode that does not exist.
        """
        for name, chosen in modes.items():
            unknown = [mode for mode in chosen if mode not in LOG_MODES]
            if unknown:
                hint = did_you_mean(unknown[0], LOG_MODES)
                raise MetricError(f"Metric {name!r} has the log mode {unknown[0]!r}. {hint}")
        return cls(tuple(modes), tuple(tuple(chosen) for chosen in modes.values()))


class DeviceMetrics(flax.struct.PyTreeNode):
    """The metrics of the steps of one window.

    Attributes:
        packed: float32 ``(metrics, NUM_COLUMNS)``.
        calls: int32 ``()``, how often :func:`accumulate` was called.
        layout: The meaning of the rows; static.
    """

    packed: jax.Array
    calls: jax.Array
    layout: MetricLayout = flax.struct.field(pytree_node=False)

    @classmethod
    def zeros(cls, layout: MetricLayout) -> "DeviceMetrics":
        """Returns an empty window."""
        packed = np.zeros((len(layout.names), NUM_COLUMNS), np.float32)
        packed[:, MAX], packed[:, MIN] = -np.inf, np.inf
        return cls(jnp.asarray(packed), jnp.asarray(np.zeros((), np.int32)), layout)


def accumulate(
    window: DeviceMetrics, sums: jax.Array, counts: jax.Array, accept: jax.Array | bool
) -> DeviceMetrics:
    """Returns the window with one more step in it.

    Args:
        window: What was gathered so far.
        sums: float32 ``(metrics,)``, weighted sums of this step.
        counts: float32 ``(metrics,)``, their weights; a metric of weight 0 was not measured.
        accept: Where False, the sums are left as they were: a refused step adds nothing.
    """
    old = window.packed
    measured = counts > 0
    mean = sums / jnp.where(measured, counts, 1.0)
    total, total_low = _add(old[:, SUM], old[:, SUM_LOW], sums)
    count, count_low = _add(old[:, COUNT], old[:, COUNT_LOW], counts)
    steps = old[:, STEPS] + 1.0
    delta = mean - old[:, MEAN]
    running = old[:, MEAN] + delta / steps
    columns = {
        SUM: total,
        SUM_LOW: total_low,
        COUNT: count,
        COUNT_LOW: count_low,
        LAST: mean,
        MAX: jnp.maximum(old[:, MAX], mean),
        MIN: jnp.minimum(old[:, MIN], mean),
        MEAN: running,
        SQUARES: old[:, SQUARES] + delta * (mean - running),
        STEPS: steps,
    }
    # Selected by column, not stacked: this becomes one small kernel and not one for each column.
    place = jnp.arange(NUM_COLUMNS)[None, :]
    packed = old
    for column, value in columns.items():
        packed = jnp.where(place == column, value[:, None], packed)
    packed = jnp.where((measured & accept)[:, None], packed, old)
    return window.replace(packed=packed, calls=window.calls + 1)


def _add(high: jax.Array, low: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array]:
    total = high + value
    virtual = total - high
    low = low + ((high - (total - virtual)) + (value - virtual))
    renormalized = total + low  # so that the low part stays below one rounding of the high one
    return renormalized, low - (renormalized - total)
