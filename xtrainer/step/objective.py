"""What is the loss of a batch at other parameters? For optimizers that look before they step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from xtrainer.step.gradients import (
    BatchGradient,
    make_gradient_fn,
    make_value_fn,
    mean_loss,
)
from xtrainer.step.settings import StepSettings
from xtrainer.types import ApplyFn, BatchLike, LossFunction, PRNGKey, PyTree

ValueFn = Callable[[PyTree], jax.Array]


def make_objective_fn(
    loss_function: LossFunction,
    apply_fn: ApplyFn,
    settings: StepSettings,
) -> Callable[..., tuple[BatchGradient, ValueFn]]:
    """Returns ``objective(params, mutable, batch, row_mask, rng, scale)``: gradient and value_fn.

    The gradient is that of :func:`xtrainer.step.gradients.make_gradient_fn`. ``value_fn(other)`` is
    the mean loss of that batch at other parameters, float32 ``()``, with its regularization, and
    with the micro-batches, random numbers and mutable collections of the step. Its derivative is
    the gradient of the step: one micro-batch after the other, so that no activations of a whole
    batch are kept, and 0 for frozen parameters. Only what an optimizer calls is traced.

    Args:
        loss_function: The user's loss.
        apply_fn: The model's ``apply``.
        settings: As for the gradient.
    """
    gradient = make_gradient_fn(loss_function, apply_fn, settings)
    value_of = make_value_fn(loss_function, apply_fn, settings)

    def objective(
        params: PyTree,
        mutable: Any,
        batch: BatchLike,
        mask: jax.Array,
        rng: PRNGKey,
        scale: jax.Array | None = None,
    ) -> tuple[BatchGradient, ValueFn]:
        @jax.custom_vjp
        def value_fn(params: PyTree) -> jax.Array:
            return value_of(params, mutable, batch, mask, rng)

        def forward(params: PyTree) -> tuple[jax.Array, tuple[PyTree, PyTree]]:
            result = gradient(params, mutable, batch, mask, rng, scale)
            # In the dtype of the parameters, as the derivative of any function of them.
            grads = jax.tree.map(lambda g, p: g.astype(p.dtype), result.grads, params)
            return mean_loss(result.terms), grads

        def backward(grads: PyTree, outer: jax.Array) -> tuple[PyTree]:
            return (jax.tree.map(lambda g: g * jnp.asarray(outer, g.dtype), grads),)

        value_fn.defvjp(forward, backward)
        return gradient(params, mutable, batch, mask, rng, scale), value_fn

    return objective
