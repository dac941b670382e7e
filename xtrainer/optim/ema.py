"""What have the parameters been on average? Kept by the optimizer, and so guarded, laid out, saved.

The average lies in the optimizer's state: a step that the guard refuses adds nothing to it, its
arrays are laid out (and offloaded) by the path of their parameter, and every checkpoint that holds
the optimizer's state holds it.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from xtrainer.errors import ConfigError
from xtrainer.optim.masks import path_mask
from xtrainer.tree import flatten_with_paths, map_with_paths
from xtrainer.types import PyTree


class AverageState(NamedTuple):
    """The state of an optimizer of :func:`with_average`.

    Attributes:
        inner: That of the optimizer whose updates make the parameters.
        average: Like the parameters, in float32 at least; nothing for a frozen one.
        count: int32 ``()``, updates in the average; 0: it has no value yet.
    """

    inner: PyTree
    average: PyTree
    count: jax.Array


class AveragingOptimizer(optax.GradientTransformationExtraArgs):
    """An optimizer of :func:`with_average`.

    Attributes:
        inner: The optimizer whose updates it passes on.
        around: From another optimizer to the same average around that one.
    """

    inner: optax.GradientTransformation
    around: Callable[[optax.GradientTransformation], "AveragingOptimizer"]


def with_average(
    optimizer: optax.GradientTransformation,
    decay: float,
    frozen: Callable[[PyTree], PyTree] | None = None,
) -> AveragingOptimizer:
    """Returns the optimizer, which now keeps an exponential moving average of the parameters too.

    After ``n`` updates that is the mean of the parameters as updates 1 to ``n`` have left them,
    with the weights ``decay ** (n - i)``: where they began has no part in it. The updates are those
    of the optimizer.

    Args:
        optimizer: Any Optax transformation.
        decay: Of the weights, above 0 and below 1.
        frozen: From a tree to a tree of bools: for which parameters no average is kept; None: for
            each one is.

    Example:
        >>> optimizer = with_average(optax.sgd(1.0), decay=0.5)
        >>> params, state = jnp.zeros(()), optimizer.init(jnp.zeros(()))
        >>> for _ in range(2):
        ...     updates, state = optimizer.update(jnp.array(-3.0), state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> float(params), float(averaged_params(state, params))  # (0.5 * 3 + 6) / 1.5
        (6.0, 5.0)
    """
    frozen = frozen or path_mask((), None)
    update_inner = optax.with_extra_args_support(optimizer).update

    def trained(params: PyTree) -> PyTree:
        without = lambda still, p: optax.MaskedNode() if still else p  # noqa: E731
        return jax.tree.map(without, frozen(params), params)

    def init(params: PyTree) -> AverageState:
        # Zeros and not the parameters: an array that is in a state twice cannot be donated.
        average = jax.tree.map(lambda p: jnp.zeros_like(p, _wide(p)), trained(params))
        return AverageState(optimizer.init(params), average, jnp.zeros((), jnp.int32))

    def update(
        updates: PyTree, state: AverageState, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, AverageState]:
        updates, inner = update_inner(updates, state.inner, params, **extra)
        count = jnp.asarray(optax.safe_increment(state.count))
        share = (1 - decay) / -jnp.expm1(count * math.log(decay))  # 1 at first, then it falls
        average = jax.tree.map(
            lambda a, p: a + share.astype(a.dtype) * (_rounded(p, a.dtype) - a),
            state.average,
            trained(optax.apply_updates(params, updates)),
        )
        return updates, AverageState(inner, average, count)

    made = AveragingOptimizer(init, update)  # pyright: ignore[reportArgumentType]
    made.inner = optimizer
    made.around = lambda other: with_average(other, decay, frozen)
    return made


def has_average(opt_state: PyTree) -> bool:
    """Says whether the state of an optimizer holds an average of the parameters."""
    return _find(opt_state) is not None


def averaged_params(opt_state: PyTree, params: PyTree) -> PyTree:
    """Returns the average that an optimizer has kept, as parameters of the model.

    Args:
        opt_state: Of an optimizer with :func:`with_average`, alone or inside others.
        params: The parameters; the average has their dtypes and layout. Those that are frozen, and
            all of them before the first update, are returned as they are.

    Raises:
        ConfigError: If there is no average in the state; see :func:`has_average`.
    """
    state = _find(opt_state)
    if state is None:
        raise ConfigError(
            "opt_state: found no average of the parameters, expected the state of an optimizer of "
            "with_average. Set OptimizerConfig(ema_decay=...)."
        )
    if not int(jax.device_get(state.count)):
        return params
    leaves = flatten_with_paths(state.average)

    def averaged(path: str, param: jax.Array) -> jax.Array:
        if path not in leaves:
            return param
        # To the devices where the optimizer's state lies on the host; else nothing is copied.
        return jax.device_put(leaves[path], param.sharding).astype(param.dtype)

    return map_with_paths(averaged, params)


def forget_average(opt_state: PyTree, put: Callable[[np.ndarray, Any], jax.Array]) -> PyTree:
    """Returns the state with an average that has no value: of parameters that are there no more.

    Args:
        opt_state: Of any optimizer.
        put: From a host array and the sharding of the old one to the new array.
    """

    def forgotten(leaf: Any) -> Any:
        if not isinstance(leaf, AverageState):
            return leaf
        return leaf._replace(count=put(np.zeros((), np.int32), leaf.count.sharding))

    return jax.tree.map(forgotten, opt_state, is_leaf=_is_average)


def _find(opt_state: PyTree) -> AverageState | None:
    leaves = jax.tree.leaves(opt_state, is_leaf=_is_average)
    return next((leaf for leaf in leaves if isinstance(leaf, AverageState)), None)


def _is_average(x: object) -> bool:
    return isinstance(x, AverageState)


def _rounded(param: jax.Array, dtype: Any) -> jax.Array:
    """Returns a parameter in a wider dtype, with its own precision, which XLA would leave out."""
    wide = param.astype(dtype)
    if param.dtype == dtype:
        return wide
    narrow = jnp.finfo(param.dtype)
    return jax.lax.reduce_precision(wide, narrow.nexp, narrow.nmant)


def _wide(param: jax.Array) -> Any:
    return jnp.promote_types(param.dtype, jnp.float32)
