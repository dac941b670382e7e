"""What this process holds of an array."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from xtrainer.checkpoint.shards import join_shards, shards_of


@pytest.mark.parametrize(
    "spec", [PartitionSpec(), PartitionSpec("fsdp"), PartitionSpec(None, "dp")]
)
def test_an_array_is_what_its_shards_make(kit, spec):
    sharding = NamedSharding(kit.mesh(2, 4), spec)
    old = jax.device_put(jnp.zeros((8, 4)), sharding)
    new = jax.device_put(jnp.arange(32.0).reshape(8, 4), sharding)
    joined = join_shards(old, [part for _, part in shards_of(new)])
    assert np.array_equal(joined, new)
    assert joined.sharding == sharding


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_keys_stay_keys_of_their_kind(kit, impl):
    sharding = NamedSharding(kit.mesh(8), PartitionSpec("fsdp"))
    keys = jax.device_put(jax.random.split(jax.random.key(3, impl=impl), 8), sharding)
    parts = [part for _, part in shards_of(keys)]
    assert len(parts) == 8
    assert all(part.dtype == jnp.uint32 for part in parts)
    joined = join_shards(keys, parts)
    assert joined.dtype == keys.dtype
    assert joined.sharding == keys.sharding
    assert kit.equal(joined, keys)
