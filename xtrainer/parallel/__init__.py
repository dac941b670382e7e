"""Where does each array live? A device mesh, the layout of the state, the placement of batches.

Synopsis:
    mesh = build_mesh(ParallelConfig(fsdp_axis_size=8, data_axis_size=1))
    shardings = state_shardings(jax.eval_shape(init), mesh, ParallelConfig())
    layout = BatchLayout.of(mesh, ParallelConfig())
    device_batch = place(host_batch, layout.sharding(rows))
"""

from xtrainer.parallel.activations import constrain_module_outputs
from xtrainer.parallel.mesh import ParallelConfig, build_mesh, check_mesh
from xtrainer.parallel.partition import state_shardings
from xtrainer.parallel.placement import BatchLayout, copy_tree, place

__all__ = [
    "BatchLayout",
    "ParallelConfig",
    "build_mesh",
    "check_mesh",
    "constrain_module_outputs",
    "copy_tree",
    "place",
    "state_shardings",
]
