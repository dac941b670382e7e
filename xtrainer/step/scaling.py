"""By what is the loss multiplied before it is differentiated, so that float16 loses no gradient?

What is scaled is the mean of a micro-batch (up to a factor below two, so that the scale stays a
power of two): the sum that the step differentiates would overflow the sooner the larger a batch is.
Micikevicius et al., Mixed Precision Training, 2018 (https://arxiv.org/abs/1710.03740), sections 3.2
and 4.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from xtrainer.errors import StepError
from xtrainer.state import GuardState
from xtrainer.step.precision import MAX_EXPONENT, PrecisionConfig
from xtrainer.types import PyTree


class Overflow(NamedTuple):
    """What a step says to a dynamic scale.

    Attributes:
        lowers: bool ``()``, whether gradients have overflowed and the scale can be lowered; not
            where the loss itself is not finite, since no scale would help.
        growth_steps: Good steps after which the scale is doubled.
    """

    lowers: jax.Array
    growth_steps: int


def scale_of(precision: PrecisionConfig, guard: GuardState) -> jax.Array | None:
    """Returns the scale of a step, float32 ``()``; None where there is none.

    Raises:
        StepError: If it is dynamic, and the state does not keep one.

    Example:
        >>> precision = PrecisionConfig(compute_dtype="float16", loss_scale="dynamic")
        >>> float(scale_of(precision, GuardState.create(precision.first_exponent)))
        32768.0
    """
    if precision.loss_scale is None:
        return None
    if precision.loss_scale != "dynamic":
        return jnp.float32(precision.loss_scale)
    if not guard.keeps_scale:
        raise StepError(
            "loss_scale: found 'dynamic' and a state that keeps no scale, expected one with it. "
            "Make the state with init_state(..., precision=precision), or with "
            "TrainState.create(..., guard=GuardState.create(precision.first_exponent))."
        )
    return jnp.left_shift(1, guard.scale_exponent).astype(jnp.float32)  # exact on every device


def scale_of_sum(scale: jax.Array, weight: jax.Array) -> jax.Array:
    """Returns by what the sum of a loss is multiplied, float32 ``()``, so that its mean is scaled.

    Args:
        scale: float32 ``()``.
        weight: float32 ``()``, of the sum.

    Example:
        >>> [float(scale_of_sum(jnp.float32(1024), jnp.float32(w))) for w in (1, 16, 24, 0)]
        [1024.0, 64.0, 64.0, 1024.0]
    """
    weight = jax.lax.stop_gradient(weight)
    usable = jnp.isfinite(weight) & (weight > 0)
    _, exponent = jnp.frexp(jnp.where(usable, weight, 1.0))  # the weight is in [2**(e-1), 2**e)
    return scale * jnp.ldexp(jnp.float32(1.0), jnp.clip(1 - exponent, -60, 60))


def next_scale(
    guard: GuardState, overflow: Overflow | None, accept: jax.Array, refused: jax.Array
) -> list[jax.Array]:
    """Returns the exponent of the scale after a step, and the good steps since it was changed.

    Of a state without a dynamic scale nothing.

    Args:
        guard: Before the step; of one that is neither accepted nor refused both stay.
        overflow: What the step says; None, for a step without a dynamic scale: both stay.
        accept: bool ``()``.
        refused: bool ``()``; without an overflow both stay as well.
    """
    if not guard.keeps_scale:
        return []
    exponent, good = guard.scale_exponent, guard.good_steps
    if overflow is None:
        return [exponent, good]
    lowers = refused & overflow.lowers
    grows = accept & (good + 1 >= overflow.growth_steps)
    changed = jnp.where(lowers, exponent - 1, jnp.minimum(exponent + 1, MAX_EXPONENT))
    counted = jnp.where(lowers | grows, 0, good + accept.astype(jnp.int32))
    return [jnp.where(lowers | grows, changed, exponent), counted]


def unscaled(grads: PyTree, factor: jax.Array) -> PyTree:
    """Returns float32 gradients of a loss that was multiplied by a factor, divided by it."""
    return jax.tree.map(lambda g: g / factor, grads)
