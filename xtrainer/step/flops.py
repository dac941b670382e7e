"""How many floating-point operations is a call? Counted from what JAX traces; nothing is run."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

# Why the traced function and not XLA's cost analysis: that counts the body of a loop once, counts
# selections and comparisons as well, and has to lower the function for a backend, once more for
# each loop that would be corrected. Here lengths of scans are known, a matrix product is exactly
# 2 m n k on every backend, and shapes are global, so that all devices are counted together.

_ELEMENTWISE = frozenset(
    "abs acos acosh add add_any asin asinh atan atan2 atanh cbrt ceil clamp cos cosh digamma div "
    "erf erf_inv erfc exp exp2 expm1 floor integer_pow lgamma log log1p logistic max min mul neg "
    "pow rem round rsqrt sign sin sinh sqrt square sub tan tanh".split()
)
"""One operation for each element of the result."""
_REDUCTIONS = frozenset(
    "cumlogsumexp cummax cummin cumprod cumsum reduce_max reduce_min reduce_prod reduce_sum".split()
)
"""One operation for each element of the argument."""
_WINDOWS = frozenset("reduce_window_max reduce_window_min reduce_window_sum".split())
"""One operation for each element of the window of each element of the result."""
_SCATTERS = frozenset("scatter-add scatter-mul scatter-sub".split())
"""One operation for each element of the updates."""


def count_flops(function: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
    """Returns the floating-point operations of one call, of all devices together.

    A product of matrices is ``2 m n k``, a convolution twice its multiplications (padding and holes
    left out); arithmetic, exponentials and the like are one for each element, sums one for each
    element of what is summed. Moving, comparing, selecting, whole numbers and results that are not
    used are free. A scan counts as often as it runs, and so does a ``fori_loop`` whose bounds are
    Python numbers, which JAX makes a scan. What is computed again in a backward pass
    (``jax.checkpoint``) is counted again. Of a condition the dearest branch counts, inside a
    ``shard_map`` what every device does, in a Pallas kernel its own estimate, or else its body for
    each cell of its grid.

    Not known while tracing, and so too little: a ``while_loop`` counts as one pass. Not counted:
    kernels of other languages, decompositions (Cholesky, QR), Fourier transforms and callbacks.

    Args:
        function: Anything that can be traced.
        args: Arrays or ``jax.ShapeDtypeStruct``s.
        kwargs: The same, by name.

    Example:
        >>> x, y = jnp.ones((2, 3)), jnp.ones((3, 5))
        >>> count_flops(jnp.matmul, x, y)
        60.0
        >>> count_flops(lambda x: jax.lax.scan(lambda c, _: (c * 2, None), x, length=8)[0], x)
        48.0
    """
    return float(_count(jax.make_jaxpr(function)(*args, **kwargs).jaxpr))


def _count(jaxpr: Jaxpr) -> int:
    total, read = 0, set(map(id, jaxpr.outvars))
    for equation in reversed(jaxpr.eqns):
        if equation.effects or not read.isdisjoint(map(id, equation.outvars)):
            read.update(map(id, equation.invars))
            total += _count_one(equation)
    return total


def _count_one(equation: JaxprEqn) -> int:
    name = equation.primitive.name
    if name in _LOOPS:
        return _LOOPS[name](equation)
    bodies = sum(map(_count, _bodies(equation)))
    inputs, outputs = _avals(equation)
    if not any(hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.inexact) for x in outputs):
        return bodies
    if name in _PRODUCTS:
        products = 4 if jnp.issubdtype(outputs[0].dtype, jnp.complexfloating) else 1
        return products * _PRODUCTS[name](equation)
    if name in _ELEMENTWISE:
        return outputs[0].size
    if name in _REDUCTIONS:
        return inputs[0].size
    if name in _WINDOWS:
        return outputs[0].size * math.prod(equation.params["window_dimensions"])
    if name == "select_and_scatter_add":
        return inputs[0].size * math.prod(equation.params["window_dimensions"])
    if name in _SCATTERS:
        return inputs[2].size
    return bodies * (inputs[0].size if name == "reduce" else 1)


def _avals(equation: JaxprEqn) -> tuple[list[Any], list[Any]]:
    return [x.aval for x in equation.invars], [x.aval for x in equation.outvars]


def _bodies(equation: JaxprEqn) -> Iterator[Jaxpr]:
    """Yields what an operation calls once: the functions of ``jit``, ``checkpoint`` and so on."""
    for value in equation.params.values():
        if isinstance(value, ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, Jaxpr):
            yield value


def _scan(equation: JaxprEqn) -> int:
    return equation.params["length"] * _count(equation.params["jaxpr"].jaxpr)


def _cond(equation: JaxprEqn) -> int:
    return max(_count(branch.jaxpr) for branch in equation.params["branches"])


def _shard_map(equation: JaxprEqn) -> int:
    mesh, axes = equation.params["mesh"], equation.params["newly_manual_axes"]
    return math.prod(mesh.shape[axis] for axis in axes) * _count(equation.params["jaxpr"])


def _pallas_call(equation: JaxprEqn) -> int:
    estimate = equation.params["cost_estimate"]
    if estimate is not None:
        return estimate.flops
    grid = [size for size in equation.params["grid_mapping"].grid if isinstance(size, int)]
    return math.prod(grid) * _count(equation.params["jaxpr"])


def _dot(equation: JaxprEqn) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    (left, _), (result,) = _avals(equation)
    return 2 * result.size * math.prod(left.shape[axis] for axis in contracted)


def _ragged_dot(equation: JaxprEqn) -> int:
    numbers = equation.params["ragged_dot_dimension_numbers"]
    (contracted, _), _ = numbers.dot_dimension_numbers
    (left, _, groups, *_), (result,) = _avals(equation)
    total = 2 * result.size * math.prod(left.shape[axis] for axis in contracted)
    # Groups that divide what is summed over: each result sums over its own group alone.
    inner = set(numbers.lhs_ragged_dimensions) & set(contracted)
    return total // groups.shape[-1] if inner else total


def _convolution(equation: JaxprEqn) -> int:
    params = equation.params
    (left, right), (result,) = _avals(equation)
    lhs, rhs, out = params["dimension_numbers"]
    hits = 1
    for axis in range(left.ndim - 2):
        places = np.arange(result.shape[out[2 + axis]])[:, None] * params["window_strides"][axis]
        taps = np.arange(right.shape[rhs[2 + axis]])[None, :] * params["rhs_dilation"][axis]
        where = places + taps - params["padding"][axis][0]
        holes, size = params["lhs_dilation"][axis], left.shape[lhs[2 + axis]]
        hits *= int(((where % holes == 0) & (where >= 0) & (where // holes < size)).sum())
    rows = left.shape[lhs[0]] // params["batch_group_count"]
    return 2 * hits * rows * right.shape[rhs[0]] * right.shape[rhs[1]]


_LOOPS = {"cond": _cond, "pallas_call": _pallas_call, "scan": _scan, "shard_map": _shard_map}
_PRODUCTS = {
    "conv_general_dilated": _convolution,
    "dot_general": _dot,
    "ragged_dot_general": _ragged_dot,
}
