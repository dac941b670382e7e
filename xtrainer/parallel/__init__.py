"""Where does each array live? A device mesh, the layout of the state, the placement of batches.

Synopsis:
    mesh = build_mesh(ParallelConfig(fsdp_axis_size=8, data_axis_size=1))
    shardings = state_shardings(jax.eval_shape(init), mesh, ParallelConfig())
    layout = BatchLayout.of(mesh, ParallelConfig())
    device_batch = place(host_batch, layout.sharding(rows))
"""

from xtrainer.parallel.activations import constrain_batch, constrain_module_outputs
from xtrainer.parallel.annotations import read_annotations, unbox
from xtrainer.parallel.collectives import Collective, collectives_of
from xtrainer.parallel.mesh import ParallelConfig, build_mesh, check_mesh
from xtrainer.parallel.partition import state_shardings
from xtrainer.parallel.pipeline import PipelinedStack, bubble_fraction, pipeline, stages_of
from xtrainer.parallel.placement import BatchLayout, copy_tree, place, put_global, replicate
from xtrainer.parallel.remat import ModuleName, check_remat, record_modules, rematerialize
from xtrainer.parallel.rules import ParamLayout, lay_out

__all__ = [
    "BatchLayout",
    "Collective",
    "ModuleName",
    "ParallelConfig",
    "ParamLayout",
    "PipelinedStack",
    "bubble_fraction",
    "build_mesh",
    "check_mesh",
    "check_remat",
    "collectives_of",
    "constrain_batch",
    "constrain_module_outputs",
    "copy_tree",
    "lay_out",
    "pipeline",
    "place",
    "put_global",
    "read_annotations",
    "record_modules",
    "rematerialize",
    "replicate",
    "stages_of",
    "state_shardings",
    "unbox",
]
