"""How does a host batch become a global array?"""

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from xtrainer.errors import MeshError
from xtrainer.parallel.mesh import ParallelConfig
from xtrainer.types import BatchLike, DataShard, PyTree


@dataclass(frozen=True)
class BatchLayout:
    """The axes of a mesh that the rows of a batch are spread over.

    Attributes:
        mesh: The device mesh.
        axes: Names of the mesh axes that divide the rows.
        pipeline_axis: Name of the mesh axis of pipeline stages; None: there is none.
    """

    mesh: Mesh
    axes: tuple[str, ...]
    pipeline_axis: str | None = None

    @classmethod
    def of(cls, mesh: Mesh, config: ParallelConfig) -> "BatchLayout":
        """Returns the layout over the data and FSDP axes that the mesh has."""
        names = (config.data_axis_name, config.fsdp_axis_name)
        axes = tuple(name for name in names if name in mesh.axis_names)
        stages = config.pipeline_axis_name
        return cls(mesh, axes, stages if stages in mesh.axis_names else None)

    @property
    def num_shards(self) -> int:
        """Into how many parts the rows are divided."""
        return math.prod(self.mesh.shape[name] for name in self.axes)

    @property
    def num_stages(self) -> int:
        """Over how many devices the layers of a pipeline are divided."""
        return 1 if self.pipeline_axis is None else self.mesh.shape[self.pipeline_axis]

    @property
    def spec(self) -> PartitionSpec:
        """The partition of an array whose first axis is the batch."""
        return PartitionSpec(self.axes) if self.axes else PartitionSpec()

    def divides(self, rows: int) -> bool:
        """Says whether every shard can hold the same number of rows."""
        return rows % self.num_shards == 0

    def sharding(self, rows: int) -> NamedSharding:
        """Returns the sharding of a batch: spread where the rows divide, else on every device."""
        return NamedSharding(self.mesh, self.spec if self.divides(rows) else PartitionSpec())

    @functools.cached_property
    def shard(self) -> DataShard:
        """Which part of every batch the devices of this process hold.

        Raises:
            MeshError: If processes hold parts of different sizes, or parts that overlap.
        """
        if jax.process_count() == 1:
            return DataShard()
        rows: dict[int, set[int]] = {}
        places = NamedSharding(self.mesh, self.spec).devices_indices_map((self.num_shards,))
        for device, index in places.items():
            part = range(*index[0].indices(self.num_shards)) if self.axes else range(1)
            rows.setdefault(device.process_index, set()).update(part)
        parts = sorted({tuple(sorted(part)) for part in rows.values()})
        if sum(map(len, parts)) != self.num_shards or len({len(part) for part in parts}) > 1:
            raise MeshError(
                f"The mesh {dict(self.mesh.shape)} gives the processes the batch parts {parts}, "
                "expected parts of one size that do not overlap. Order the devices by process, or "
                "choose sizes so that a process holds whole parts."
            )
        return DataShard(parts.index(tuple(sorted(rows[jax.process_index()]))), len(parts))

    def part_of(self, rows: int) -> int:
        """Returns how many rows of a global batch one process gives."""
        return rows // self.shard.count

    @property
    def replicated(self) -> NamedSharding:
        """The sharding of an array that every device holds whole."""
        return NamedSharding(self.mesh, PartitionSpec())

    def split_spec(self) -> PartitionSpec:
        """The partition of micro-batches stacked along a new first axis."""
        return PartitionSpec(None, self.axes) if self.axes else PartitionSpec()


def place(batch: BatchLike, sharding: NamedSharding, rows: int | None = None) -> BatchLike:
    """Returns the batch as global arrays.

    The host arrays must not be written to afterwards: on the CPU backend the device array may share
    their memory. With several processes each gives its own rows, and nothing is communicated.

    Args:
        batch: Host arrays with a leading batch axis.
        sharding: From :meth:`BatchLayout.sharding`.
        rows: Rows of the global batch; those of ``batch`` where None.
    """
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)

    def globalize(x: Any) -> jax.Array:
        local = np.asarray(x)
        shape = (local.shape[0] if rows is None else rows, *local.shape[1:])
        return jax.make_array_from_process_local_data(sharding, local, shape)

    with jax.transfer_guard_host_to_device("allow"):  # asked for here, though JAX cannot know
        return jax.tree.map(globalize, batch)


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Returns host arrays as arrays that every device holds whole.

    Every process gives the same values; they are not compared, so that nothing is communicated.
    """
    return put_global(tree, jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), tree))


def put_global(tree: PyTree, shardings: PyTree) -> PyTree:
    """Returns whole host arrays, the same on every process, laid out by ``shardings``."""
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)

    def put(x: Any, sharding: NamedSharding) -> jax.Array:
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return jax.device_put(x, sharding)
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    with jax.transfer_guard_host_to_device("allow"):
        return jax.tree.map(put, tree, shardings)


def copy_tree(tree: PyTree, shardings: Any = None) -> PyTree:
    """Returns fresh buffers with the same values, laid out by ``shardings``; all can be donated."""
    return jax.jit(lambda t: jax.tree.map(jnp.copy, t), out_shardings=shardings)(tree)
