"""How are the leaves of a tree named and counted?"""

import fnmatch
import functools
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xtrainer.types import PyTree


def path_str(path: Any) -> str:
    """Returns a key path as ``"params/block_0/kernel"``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def flatten_with_paths(tree: PyTree) -> dict[str, Any]:
    """Returns the leaves by their path.

    Example:
        >>> flatten_with_paths({"a": {"b": 1}, "c": [2, 3]})
        {'a/b': 1, 'c/0': 2, 'c/1': 3}
    """
    return {path_str(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def map_with_paths(function: Callable[..., Any], tree: PyTree, *rest: PyTree) -> PyTree:
    """Maps ``function(path, leaf, ...)`` over a tree; the path is a string."""
    return jax.tree_util.tree_map_with_path(
        lambda p, *leaves: function(path_str(p), *leaves), tree, *rest
    )


def matches(pattern: str, path: str) -> bool:
    """Says whether a pattern names a path: as a glob of the whole path, or as a regex found in it.

    A pattern of letters, digits, ``_ / - . * ? [ ]`` with a ``*`` not after ``.`` is a glob;
    everything else is searched as a regular expression.

    Example:
        >>> matches("*/bias", "dense/bias"), matches(r"(bias|scale)$", "norm/scale")
        (True, True)
    """
    if re.fullmatch(r"[\w/\-.*?\[\]]*", pattern) and re.search(r"(?<!\.)\*", pattern):
        return fnmatch.fnmatchcase(path, pattern)
    return re.search(pattern, path) is not None


def num_elements(tree: PyTree) -> int:
    """Returns the number of elements of all array leaves."""
    return sum(int(np.prod(leaf.shape, dtype=np.int64)) for leaf in jax.tree.leaves(tree))


def num_bytes(tree: PyTree) -> int:
    """Returns the bytes of all array leaves, counted once whatever the sharding."""
    return sum(_leaf_bytes(leaf) for leaf in jax.tree.leaves(tree))


def device_bytes(tree: PyTree) -> int:
    """Returns the bytes of all array leaves that one device holds.

    Args:
        tree: Arrays or ``ShapeDtypeStruct``s; a leaf without a sharding counts whole.

    Example:
        >>> device_bytes({"a": jax.ShapeDtypeStruct((4, 2), "float32")})
        32
    """
    return sum(_shard_bytes(leaf) for leaf in jax.tree.leaves(tree))


def _shard_bytes(leaf: Any) -> int:
    sharding = getattr(leaf, "sharding", None)
    if sharding is None or not leaf.size:
        return _leaf_bytes(leaf)
    return _leaf_bytes(leaf) * math.prod(sharding.shard_shape(leaf.shape)) // leaf.size


def _leaf_bytes(leaf: Any) -> int:
    size = int(np.prod(leaf.shape, dtype=np.int64))
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return size * _key_bytes(leaf.dtype)
    return size * np.dtype(leaf.dtype).itemsize


@functools.cache  # what JAX keeps of each call of eval_shape it keeps for good
def _key_bytes(dtype: Any) -> int:
    data = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct((), dtype))
    return data.size * np.dtype(data.dtype).itemsize
