"""What does this process hold of an array? Its shards, one for each device, and back again."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp


def shards_of(leaf: jax.Array) -> list[tuple[str, jax.Array]]:
    """Returns the parts of a leaf on the devices of this process; of typed keys their numbers.

    Each comes with the name of its region of the whole; replicas have the same.
    """
    shards = _numbers(leaf).addressable_shards
    return [(str(shard.index), shard.data) for shard in shards if shard.data is not None]


def join_shards(like: jax.Array, parts: Iterable[jax.Array]) -> jax.Array:
    """Returns an array as ``like``, with other values.

    Args:
        like: Gives shape, dtype and sharding.
        parts: One array for each shard of :func:`shards_of`, on its device and in its order.

    Example:
        >>> old, new = jax.random.key(0), jax.random.key(1)
        >>> joined = join_shards(old, [part for _, part in shards_of(new)])
        >>> bool(joined == new)
        True
    """
    numbers = _numbers(like)
    joined = jax.make_array_from_single_device_arrays(numbers.shape, numbers.sharding, list(parts))
    if numbers is like:
        return joined
    return jax.random.wrap_key_data(joined, impl=jax.random.key_impl(like))


def _numbers(leaf: jax.Array) -> jax.Array:
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf
