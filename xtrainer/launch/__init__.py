"""On which machines does this run? JAX's distributed runtime, started once, before any device.

Synopsis:
    info = initialize()        # explicit arguments, else SLURM, Open MPI or JAX_COORDINATOR_ADDRESS
    if is_main_process():
        print(process_index(), process_count())
"""

from xtrainer.launch.cluster import ClusterInfo, detect_cluster
from xtrainer.launch.compile_cache import (
    CacheCounts,
    CompilationCache,
    CompileRecord,
    compilation_cache,
    enable_compilation_cache,
)
from xtrainer.launch.distributed import (
    LaunchInfo,
    initialize,
    is_main_process,
    process_count,
    process_index,
)
from xtrainer.launch.exchange import (
    barrier,
    broadcast,
    gather,
    gather_results,
    raise_for_peers,
)
from xtrainer.launch.local import run_local
from xtrainer.launch.slurm import SlurmJob, sbatch_script, write_sbatch

__all__ = [
    "CacheCounts",
    "ClusterInfo",
    "CompilationCache",
    "CompileRecord",
    "LaunchInfo",
    "SlurmJob",
    "barrier",
    "broadcast",
    "compilation_cache",
    "detect_cluster",
    "enable_compilation_cache",
    "gather",
    "gather_results",
    "initialize",
    "is_main_process",
    "process_count",
    "process_index",
    "raise_for_peers",
    "run_local",
    "sbatch_script",
    "write_sbatch",
]
