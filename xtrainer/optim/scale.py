"""How is the learning rate changed while a run goes on, and nothing compiled anew?"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from xtrainer.optim.ema import AveragingOptimizer
from xtrainer.types import PyTree


class UpdateScale(NamedTuple):
    """What all updates are multiplied by.

    Attributes:
        scale: float32 ``()``.
    """

    scale: jax.Array


def scalable(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns an optimizer whose updates are multiplied by a number that is part of its state.

    For an optimizer whose updates are proportional to the learning rate, decoupled weight decay
    included, that is the same as another learning rate. An average of the parameters is one of
    what the multiplied updates make of them.

    Example:
        >>> transform = scalable(optax.sgd(1.0))
        >>> state = transform.init(jnp.ones(1))
        >>> state = set_update_scale(state, 0.5, lambda value, sharding: jnp.asarray(value))
        >>> transform.update(jnp.ones(1), state)[0].tolist()
        [-0.5]
    """

    if isinstance(optimizer, AveragingOptimizer):
        return optimizer.around(scalable(optimizer.inner))

    def init(params: PyTree) -> UpdateScale:
        return UpdateScale(jnp.ones((), jnp.float32))

    def update(
        updates: PyTree, state: UpdateScale, params: PyTree = None
    ) -> tuple[PyTree, UpdateScale]:
        return jax.tree.map(lambda u: u * state.scale.astype(u.dtype), updates), state

    scale = optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]
    return optax.chain(optimizer, scale)


def is_scalable(opt_state: PyTree) -> bool:
    """Says whether a state is that of a :func:`scalable` optimizer."""
    is_scale = lambda x: isinstance(x, UpdateScale)  # noqa: E731
    return any(map(is_scale, jax.tree.leaves(opt_state, is_leaf=is_scale)))


def set_update_scale(
    opt_state: PyTree, scale: float, put: Callable[[np.ndarray, Any], jax.Array]
) -> PyTree:
    """Returns the state of a :func:`scalable` optimizer with another number.

    Args:
        opt_state: The state.
        scale: The number.
        put: From a host array and the sharding of the old one to the new array.
    """

    def replaced(leaf: Any) -> Any:
        if not isinstance(leaf, UpdateScale):
            return leaf
        return UpdateScale(put(np.array(scale, np.float32), leaf.scale.sharding))

    return jax.tree.map(replaced, opt_state, is_leaf=lambda x: isinstance(x, UpdateScale))
