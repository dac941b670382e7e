"""How does a host batch become a global array?"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from xtrainer.parallel.mesh import ParallelConfig
from xtrainer.types import BatchLike, PyTree


@dataclass(frozen=True)
class BatchLayout:
    """The axes of a mesh that the rows of a batch are spread over.

    Attributes:
        mesh: The device mesh.
        axes: Names of the mesh axes that divide the rows.
    """

    mesh: Mesh
    axes: tuple[str, ...]

    @classmethod
    def of(cls, mesh: Mesh, config: ParallelConfig) -> "BatchLayout":
        """Returns the layout over the data and FSDP axes that the mesh has."""
        names = (config.data_axis_name, config.fsdp_axis_name)
        return cls(mesh, tuple(name for name in names if name in mesh.axis_names))

    @property
    def num_shards(self) -> int:
        """Into how many parts the rows are divided."""
        return math.prod(self.mesh.shape[name] for name in self.axes)

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

    @property
    def replicated(self) -> NamedSharding:
        """The sharding of an array that every device holds whole."""
        return NamedSharding(self.mesh, PartitionSpec())

    def split_spec(self) -> PartitionSpec:
        """The partition of micro-batches stacked along a new first axis."""
        return PartitionSpec(None, self.axes) if self.axes else PartitionSpec()


def place(batch: BatchLike, sharding: NamedSharding) -> BatchLike:
    """Returns the batch as global arrays.

    The host arrays must not be written to afterwards: on the CPU backend the device array may share
    their memory. With several processes each gives its own rows.

    Args:
        batch: Host arrays with a leading batch axis.
        sharding: From :meth:`BatchLayout.sharding`.
    """
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def copy_tree(tree: PyTree, shardings: Any = None) -> PyTree:
    """Returns fresh buffers with the same values, laid out by ``shardings``; all can be donated."""
    return jax.jit(lambda t: jax.tree.map(jnp.copy, t), out_shardings=shardings)(tree)
