"""On which machines does this run? JAX's distributed runtime, started once, before any device.

Synopsis:
    info = initialize()        # explicit arguments, else SLURM, Open MPI or JAX_COORDINATOR_ADDRESS
    if is_main_process():
        print(process_index(), process_count())
"""

from xtrainer.launch.cluster import ClusterInfo, detect_cluster
from xtrainer.launch.distributed import (
    LaunchInfo,
    initialize,
    is_main_process,
    process_count,
    process_index,
)

__all__ = [
    "ClusterInfo",
    "LaunchInfo",
    "detect_cluster",
    "initialize",
    "is_main_process",
    "process_count",
    "process_index",
]
