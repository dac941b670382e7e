"""What happens to gradients and updates around the optimizer: clipping, decay, freezing."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from xtrainer.optim.extra import without_frozen
from xtrainer.types import PyTree, Schedule


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Returns a transformation that shortens the whole gradient to ``max_norm``.

    The norm is summed in float32 at least: squares of float16 overflow at 256 and those of
    bfloat16 lose small terms. A norm of NaN leaves the gradient as it is, so that the leaf that
    is not finite can still be told from the others.
    """

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        del params
        norm = _global_norm(updates)
        return jax.tree.map(lambda g: _shorten(g, norm, max_norm), updates), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def clip_each_norm(max_norm: float) -> optax.GradientTransformation:
    """Returns a transformation that shortens the gradient of each parameter to ``max_norm``.

    Norms are summed as in :func:`clip_by_global_norm`; one of NaN leaves its parameter's gradient
    as it is.
    """

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        del params
        return jax.tree.map(lambda g: _shorten(g, _global_norm(g), max_norm), updates), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def in_turn(*transforms: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns transformations without a state as one, whose state is that of a single one."""

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        for transform in transforms:
            updates, state = transform.update(updates, state, params)
        return updates, state

    return optax.GradientTransformation(optax.init_empty_state, update)


def decay_in_rate(
    weight_decay: float, mask: Callable[[PyTree], PyTree]
) -> optax.GradientTransformation:
    """Returns the weight decay for updates that the learning rate has yet to scale."""
    return optax.add_decayed_weights(weight_decay, mask)


def decay_after_rate(
    weight_decay: float, schedule: Schedule, mask: Callable[[PyTree], PyTree]
) -> optax.GradientTransformation:
    """Returns the weight decay for finished updates: adds ``-lr * weight_decay * parameter``.

    Not ``optax.add_decayed_weights`` with a schedule: up to Optax 0.2.6 its count stays 0, and so
    does the decay after a warmup.
    """

    def init(params: PyTree) -> PyTree:
        del params
        return optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32))

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        factor = -weight_decay * schedule(state.count)
        updates = jax.tree.map(
            lambda chosen, u, p: u + factor * p if chosen else u, mask(updates), updates, params
        )
        return updates, optax.ScaleByScheduleState(optax.safe_increment(state.count))

    return optax.GradientTransformation(init, update)


def freeze(
    transform: optax.GradientTransformation, mask: Callable[[PyTree], PyTree]
) -> optax.GradientTransformationExtraArgs:
    """Returns the transformation for the other parameters; the updates of the chosen ones are 0.

    The state has the structure of the transformation's, without an entry for a chosen parameter.
    ``optax.masked`` would let gradients of these pass, and wrap the state.

    Args:
        transform: Sees only what is not frozen.
        mask: From a tree to a tree of bools: which leaves are frozen.
    """
    inner = optax.with_extra_args_support(transform)

    def without(tree: PyTree) -> PyTree:
        if tree is None:
            return None
        return jax.tree.map(lambda chosen, x: optax.MaskedNode() if chosen else x, mask(tree), tree)

    def init(params: PyTree) -> PyTree:
        return inner.init(without(params))

    def update(
        updates: PyTree, state: PyTree, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        extra = without_frozen(extra, mask, params)
        moved, state = inner.update(without(updates), state, without(params), **extra)
        frozen = mask(updates)
        moves = iter(jax.tree.leaves(moved))
        return jax.tree.map(
            lambda chosen, u: jnp.zeros_like(u) if chosen else next(moves), frozen, updates
        ), state

    return optax.GradientTransformationExtraArgs(init, update)


def check_at_init(
    transform: optax.GradientTransformation, check: Callable[[PyTree], None]
) -> optax.GradientTransformationExtraArgs:
    """Returns the transformation, calling ``check(params)`` whenever its state is made."""

    def init(params: PyTree) -> PyTree:
        check(params)
        return transform.init(params)

    return optax.GradientTransformationExtraArgs(
        init, optax.with_extra_args_support(transform).update
    )


def _global_norm(tree: PyTree) -> jax.Array:
    squares = [jnp.sum(jnp.square(jnp.abs(_wide(leaf)))) for leaf in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(squares, start=jnp.zeros(())))


def _shorten(gradient: jax.Array, norm: jax.Array, max_norm: float) -> jax.Array:
    short = (_wide(gradient) / norm) * max_norm
    return jnp.where(norm > max_norm, short.astype(gradient.dtype), gradient)


def _wide(leaf: jax.Array) -> jax.Array:
    return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
