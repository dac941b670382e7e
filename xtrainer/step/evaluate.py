"""What does an evaluation step do? The loss without gradient, added to the metrics."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from xtrainer.metrics import DeviceMetrics, accumulate
from xtrainer.state import TrainState
from xtrainer.step.loss import evaluate_loss
from xtrainer.step.precision import cast_floating
from xtrainer.step.settings import StepSettings
from xtrainer.types import ApplyFn, BatchLike, LossFunction

EvalStepFn = Callable[..., DeviceMetrics]


def make_eval_step(
    loss_function: LossFunction, apply_fn: ApplyFn, settings: StepSettings | None = None
) -> EvalStepFn:
    """Returns ``step(state, batch, row_mask=None, metrics=None) -> metrics``.

    The function is pure and not compiled; arguments are as for
    :func:`xtrainer.step.make_train_step`. The key of a batch comes from ``seed_eval`` and the
    number of batches already in ``metrics``.

    Args:
        loss_function: The user's loss; called with ``train=False``.
        apply_fn: The model's ``apply``.
        settings: Precision, ``seed_eval``, layout.
    """
    settings = settings or StepSettings()

    def eval_step(
        state: TrainState,
        batch: BatchLike,
        row_mask: jax.Array | None = None,
        metrics: DeviceMetrics | None = None,
    ) -> DeviceMetrics:
        if row_mask is None:
            row_mask = jnp.ones(jax.tree.leaves(batch)[0].shape[0], bool)
        calls = jnp.zeros((), jnp.int32) if metrics is None else metrics.calls
        rng = jax.random.fold_in(jax.random.key(settings.seed_eval), calls)
        terms = evaluate_loss(
            loss_function,
            apply_fn,
            settings,
            cast_floating(state.params, settings.precision.compute_dtype),
            state.mutable_variables,
            batch,
            row_mask,
            rng,
            train=False,
        )
        window = DeviceMetrics.zeros(terms.layout) if metrics is None else metrics
        return accumulate(window, terms.sums, terms.counts, accept=True)

    return eval_step
