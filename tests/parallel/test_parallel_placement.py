"""Do the rows of a batch go to the devices that should have them?"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from xtrainer.parallel import BatchLayout, ParallelConfig, build_mesh, copy_tree, place


def layout(**sizes: int) -> BatchLayout:
    config = ParallelConfig(**sizes)
    return BatchLayout.of(build_mesh(config), config)


@pytest.mark.parametrize(
    ("sizes", "shards"),
    [
        ({}, 8),
        ({"fsdp_axis_size": 8}, 8),
        ({"fsdp_axis_size": 4}, 8),
        ({"model_axis_size": 4}, 2),
        ({"data_axis_size": 1, "model_axis_size": 2, "pipeline_axis_size": 4}, 1),
    ],
)
def test_rows_are_spread_over_data_and_fsdp_axes(sizes: dict[str, int], shards: int) -> None:
    chosen = layout(**sizes)
    assert chosen.axes == ("dp", "fsdp")
    assert chosen.num_shards == shards
    rows = place(np.arange(24), chosen.sharding(24))
    held = {shard.device: tuple(np.asarray(shard.data)) for shard in rows.addressable_shards}
    assert len(held) == 8
    assert {len(part) for part in held.values()} == {24 // shards}
    assert len(set(held.values())) == shards


def test_a_mesh_of_the_users_own_may_lack_axes() -> None:
    kinds = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((8,), ("dp",), axis_types=kinds)
    assert BatchLayout.of(mesh, ParallelConfig()).axes == ("dp",)
    other = BatchLayout.of(jax.make_mesh((8,), ("tp",), axis_types=kinds), ParallelConfig())
    assert (other.axes, other.num_shards) == ((), 1)
    assert other.spec == other.split_spec() == PartitionSpec()
    assert other.sharding(3).is_fully_replicated


@pytest.mark.parametrize(("rows", "divides"), [(8, True), (16, True), (0, True), (12, False)])
def test_rows_that_do_not_divide_are_on_every_device(rows: int, divides: bool) -> None:
    chosen = layout()
    assert chosen.divides(rows) is divides
    assert chosen.sharding(rows).spec == (chosen.spec if divides else PartitionSpec())
    array = place(np.arange(rows), chosen.sharding(rows))
    assert array.is_fully_replicated is not divides
    np.testing.assert_array_equal(array, np.arange(rows))


def test_every_leaf_is_placed_with_its_type() -> None:
    chosen = layout(fsdp_axis_size=2)
    labels = (np.arange(16, dtype=np.int8), np.ones(16, bool))
    batch = {"x": np.ones((16, 3), np.float32), "y": labels}
    placed = place(batch, chosen.sharding(16))
    assert jax.tree.structure(placed) == jax.tree.structure(batch)
    for before, after in zip(jax.tree.leaves(batch), jax.tree.leaves(placed), strict=True):
        assert isinstance(after, jax.Array)
        assert after.dtype == before.dtype
        assert after.addressable_shards[0].data.shape == (2, *before.shape[1:])
        np.testing.assert_array_equal(after, before)


def test_micro_batches_are_spread_along_their_rows() -> None:
    assert layout().split_spec() == PartitionSpec(None, ("dp", "fsdp"))
    assert layout().spec == PartitionSpec(("dp", "fsdp"))


def test_a_replicated_array_is_whole_everywhere() -> None:
    array = jax.device_put(np.arange(3), layout().replicated)
    assert [shard.data.shape for shard in array.addressable_shards] == [(3,)] * 8


def test_a_copy_has_buffers_of_its_own() -> None:
    chosen = layout()
    tree = {"a": jnp.arange(8.0), "key": jax.random.key(1)}
    shardings = {"a": chosen.sharding(8), "key": chosen.replicated}
    copy = copy_tree(tree, shardings)
    assert copy["a"].sharding == shardings["a"]
    jax.jit(lambda t: jax.tree.map(lambda x: x, t), donate_argnums=0)(copy)
    copy["a"].delete()
    np.testing.assert_array_equal(tree["a"], np.arange(8.0))
    np.testing.assert_array_equal(copy_tree(tree)["a"], np.arange(8.0))


def test_a_copy_is_taken_before_the_host_array_changes() -> None:
    host = np.ones(64, np.float32)
    placed = jax.device_put(host, layout().sharding(64))
    copy = copy_tree({"a": placed})
    jax.block_until_ready(copy)
    host[:] = 5.0
    assert float(copy["a"].sum()) == 64.0
