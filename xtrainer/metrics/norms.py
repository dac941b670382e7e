"""How long is a tree of arrays? Norms in float32, whatever the arrays' dtype."""

import jax
import jax.numpy as jnp

from xtrainer.tree import flatten_with_paths
from xtrainer.types import PyTree


def global_norm(tree: PyTree) -> jax.Array:
    """Returns the Euclidean norm of all leaves together, float32 ``()``.

    Example:
        >>> float(global_norm({"a": jnp.array([3.0]), "b": jnp.array([4.0], jnp.bfloat16)}))
        5.0
    """
    squares = [_sum_of_squares(leaf) for leaf in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(squares, jnp.zeros((), jnp.float32)))


def norms_per_param(tree: PyTree) -> dict[str, jax.Array]:
    """Returns the Euclidean norm of each leaf by its path, float32 ``()``."""
    return {
        path: jnp.sqrt(_sum_of_squares(leaf)) for path, leaf in flatten_with_paths(tree).items()
    }


def _sum_of_squares(leaf: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(jnp.abs(leaf).astype(jnp.float32)))
