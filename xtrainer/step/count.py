"""What does a counting step do? It adds what a function counts in a batch, exactly."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from xtrainer.errors import MetricError
from xtrainer.metrics import DeviceMetrics, accumulate
from xtrainer.state import TrainState
from xtrainer.step.apply import BoundApply
from xtrainer.step.precision import cast_floating
from xtrainer.step.rows import arrange_rows, inner_layout
from xtrainer.step.settings import StepSettings
from xtrainer.types import ApplyFn, BatchLike, CountFunction

CountStepFn = Callable[..., DeviceMetrics]

_LOW_BITS = 12
"""A float32 holds 24 bits exactly: counts of a batch are added in two parts."""


def make_count_step(
    count_function: CountFunction, apply_fn: ApplyFn, settings: StepSettings | None = None
) -> CountStepFn:
    """Returns ``step(state, batch, row_mask, metrics) -> metrics``, pure and not compiled.

    The metrics have an entry for each count, in the mode ``sum``; it is exact up to 2**46.

    Args:
        count_function: ``(params, apply_fn, batch, row_mask, rng)`` to integers ``(counts,)`` of
            the rows that ``row_mask`` does not leave out.
        apply_fn: The model's ``apply``.
        settings: Precision, ``seed_eval``, layout.

    Raises:
        MetricError: If something else than so many integers is counted.
    """
    settings = settings or StepSettings()
    inner = inner_layout(settings.layout)
    inside = dataclasses.replace(settings, layout=inner)

    def count_step(
        state: TrainState, batch: BatchLike, row_mask: jax.Array, metrics: DeviceMetrics
    ) -> DeviceMetrics:
        rng = jax.random.fold_in(jax.random.key(settings.seed_eval), metrics.calls)
        params = cast_floating(state.params, settings.precision.compute_dtype)
        batch, row_mask = arrange_rows((batch, row_mask), settings.layout, inner)
        rows = row_mask.shape[0]
        bound = BoundApply(apply_fn, state.mutable_variables, inside, rows, train=False)
        counts = jnp.asarray(count_function(params, bound, batch, row_mask, rng))
        expected = (len(metrics.layout.names),)
        if counts.shape != expected or not jnp.issubdtype(counts.dtype, jnp.integer):
            raise MetricError(
                f"A count is {counts.dtype}{list(counts.shape)}, expected integers of shape "
                f"{expected}."
            )
        low = counts & (2**_LOW_BITS - 1)
        parts = [part.astype(jnp.float32) for part in (counts - low, low)]
        ones = jnp.ones_like(parts[0])
        first = accumulate(metrics, parts[0], ones, accept=True)
        return accumulate(first.replace(calls=metrics.calls), parts[1], ones, accept=True)

    return count_step
