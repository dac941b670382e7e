"""Which launcher started this process, and as which of how many? Read from the environment."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from xtrainer.errors import ConfigError

ClusterKind = Literal["slurm", "ompi", "environment"]

_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")


@dataclass(frozen=True, kw_only=True)
class ClusterInfo:
    """What a launcher said about this process; None where it said nothing.

    Attributes:
        kind: ``"slurm"``, ``"ompi"`` (Open MPI) or ``"environment"`` (JAX_COORDINATOR_ADDRESS).
        num_processes: How many processes were started.
        process_id: The number of this one, from 0.
        local_process_id: The number of this one on its machine, from 0.
        coordinator_address: ``host:port`` of process 0.
        knows_address: JAX can work out the address from the launcher where none is given.
    """

    kind: ClusterKind
    num_processes: int | None = None
    process_id: int | None = None
    local_process_id: int | None = None
    coordinator_address: str | None = None
    knows_address: bool = False


def detect_cluster(environ: Mapping[str, str]) -> ClusterInfo | None:
    """Returns what launched several processes, or None where this process is alone.

    SLURM counts for ``srun`` with more than one task, not for the batch script around it.

    Args:
        environ: Usually ``os.environ``.

    Raises:
        ConfigError: If a variable that must hold a number does not.

    Example:
        >>> detect_cluster({"OMPI_COMM_WORLD_SIZE": "1"}) is None
        True
        >>> detect_cluster({"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234"}).kind
        'environment'
    """
    address = environ.get("JAX_COORDINATOR_ADDRESS") or None
    if all(name in environ for name in _SLURM):
        # Inside `srun --pty` of an allocation only the step's own count says that it is one task.
        step_tasks = _number(environ, "SLURM_STEP_NUM_TASKS")
        tasks = step_tasks if step_tasks is not None else _number(environ, "SLURM_NTASKS")
        if tasks is not None and tasks > 1:
            return ClusterInfo(
                kind="slurm",
                num_processes=tasks,
                process_id=_number(environ, "SLURM_PROCID"),
                local_process_id=_number(environ, "SLURM_LOCALID"),
                coordinator_address=address,
                knows_address=True,
            )
    size = _number(environ, "OMPI_COMM_WORLD_SIZE")
    if size is not None and size > 1:
        return ClusterInfo(
            kind="ompi",
            num_processes=size,
            process_id=_number(environ, "OMPI_COMM_WORLD_RANK"),
            local_process_id=_number(environ, "OMPI_COMM_WORLD_LOCAL_RANK"),
            coordinator_address=address,
            knows_address="OMPI_MCA_orte_hnp_uri" in environ,  # gone since Open MPI 5
        )
    if address is None:
        return None
    return ClusterInfo(
        kind="environment",
        num_processes=_number(environ, "JAX_NUM_PROCESSES"),
        process_id=_number(environ, "JAX_PROCESS_ID"),
        coordinator_address=address,
    )


def _number(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name)
    if text is None:
        return None
    if not text.strip().isdecimal():
        raise ConfigError(
            f"The environment variable {name} is {text!r}, expected a whole number. "
            "Unset it, or pass the processes to initialize(...) yourself."
        )
    return int(text)
