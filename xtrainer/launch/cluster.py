"""Which launcher started this process, and as which of how many? Read from the environment.

Nothing is asked over the network here. Where JAX itself finds out the rest (SLURM, Open MPI 4, TPU
pods, Kubernetes with its client installed), that is left to JAX.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from xtrainer.errors import ConfigError

ClusterKind = Literal["slurm", "ompi", "tpu", "kubernetes", "environment"]

_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
_TPU_HOSTS = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")  # in JAX's order
_GIVEN = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ClusterInfo:
    """What a launcher said about this process; None where it said nothing.

    Attributes:
        kind: ``"slurm"``, ``"ompi"`` (Open MPI), ``"tpu"`` (a TPU pod, also on GKE),
            ``"kubernetes"`` (an Indexed Job or JobSet) or ``"environment"``
            (JAX_COORDINATOR_ADDRESS with JAX_NUM_PROCESSES and JAX_PROCESS_ID).
        name: The launcher in words, with the number of the job where there is one.
        num_processes: How many processes were started.
        process_id: The number of this one, from 0.
        local_process_id: The number of this one on its machine, from 0.
        coordinator_address: ``host:port`` of process 0.
        knows_address: JAX can work out the address, and count and number where they are None.
    """

    kind: ClusterKind
    name: str = ""
    num_processes: int | None = None
    process_id: int | None = None
    local_process_id: int | None = None
    coordinator_address: str | None = None
    knows_address: bool = False

    @property
    def description(self) -> str:
        """Returns one sentence for a log.

        Example:
            >>> ClusterInfo(kind="slurm", name="SLURM step 12.0", num_processes=8, process_id=3,
            ...             knows_address=True).description
            'SLURM step 12.0, process 3 of 8, coordinator found by JAX.'
        """
        found = "found by JAX" if self.knows_address else "not said"
        process = f"processes {found}"
        if (self.process_id, self.num_processes) != (None, None):
            index, count = (
                "?" if number is None else number
                for number in (self.process_id, self.num_processes)
            )
            process = f"process {index} of {count}"
        coordinator = self.coordinator_address or found
        return f"{self.name or self.kind}, {process}, coordinator {coordinator}."


def detect_cluster(
    environ: Mapping[str, str], on_tpu_vm: bool = False, kubernetes_client: bool = False
) -> ClusterInfo | None:
    """Returns what launched several processes, or None where this process is alone.

    The most explicit wins: JAX_COORDINATOR_ADDRESS with count and number, then SLURM, Open MPI, TPU
    pods and Kubernetes. SLURM counts for ``srun`` with more than one task, not for the batch script
    around it.

    Args:
        environ: Usually ``os.environ``.
        on_tpu_vm: JAX found TPU chips and their library here. A Cloud TPU VM without
            TPU_WORKER_HOSTNAMES may be one host of a pod, and only its metadata server, which JAX
            asks, says of how many.
        kubernetes_client: The package ``kubernetes`` is installed, with which JAX asks the cluster
            for the address and the count.

    Raises:
        ConfigError: If a variable that must hold a number does not.

    Example:
        >>> detect_cluster({"OMPI_COMM_WORLD_SIZE": "1"}) is None
        True
        >>> detect_cluster({"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234"}).kind
        'environment'
    """
    if all(environ.get(name) for name in _GIVEN):
        return _given(environ)
    found = _slurm(environ) or _open_mpi(environ)
    if found is None and on_tpu_vm and _tpu_is_described(environ):
        return _tpu(environ)  # also where it says one host: a JobSet of such is no run of several
    if found is None and "JOB_COMPLETION_INDEX" in environ:
        found = _kubernetes(environ, kubernetes_client)
    if found is None and _address(environ) is not None:
        found = _given(environ)
    return found


def _given(environ: Mapping[str, str]) -> ClusterInfo:
    return ClusterInfo(
        kind="environment",
        name="JAX_COORDINATOR_ADDRESS",
        num_processes=_number(environ, "JAX_NUM_PROCESSES"),
        process_id=_number(environ, "JAX_PROCESS_ID"),
        coordinator_address=_address(environ),
    )


def _slurm(environ: Mapping[str, str]) -> ClusterInfo | None:
    if not all(name in environ for name in _SLURM):
        return None
    # Inside `srun --pty` of an allocation only the step's own count says that it is one task.
    step_tasks = _number(environ, "SLURM_STEP_NUM_TASKS")
    tasks = step_tasks if step_tasks is not None else _number(environ, "SLURM_NTASKS")
    if tasks is None or tasks < 2:
        return None
    step = environ.get("SLURM_STEP_ID")
    return ClusterInfo(
        kind="slurm",
        name=f"SLURM step {environ['SLURM_JOB_ID']}{f'.{step}' if step else ''}",
        num_processes=tasks,
        process_id=_number(environ, "SLURM_PROCID"),
        local_process_id=_number(environ, "SLURM_LOCALID"),
        coordinator_address=_address(environ),
        knows_address=True,
    )


def _open_mpi(environ: Mapping[str, str]) -> ClusterInfo | None:
    size = _number(environ, "OMPI_COMM_WORLD_SIZE")
    if size is None or size < 2:
        return None
    return ClusterInfo(
        kind="ompi",
        name="Open MPI",
        num_processes=size,
        process_id=_number(environ, "OMPI_COMM_WORLD_RANK"),
        local_process_id=_number(environ, "OMPI_COMM_WORLD_LOCAL_RANK"),
        coordinator_address=_address(environ),
        knows_address="OMPI_MCA_orte_hnp_uri" in environ,  # gone since Open MPI 5
    )


def _tpu_is_described(environ: Mapping[str, str]) -> bool:
    hosts = any(name in environ for name in _TPU_HOSTS)
    # JAX sets the variable where no metadata server is to be asked.
    return hosts or "TPU_SKIP_MDS_QUERY" not in environ


def _tpu(environ: Mapping[str, str]) -> ClusterInfo | None:
    """Reads a TPU pod as JAX does: the hosts of a slice, times the slices."""
    address = _address(environ)
    hosts = next((environ[name] for name in _TPU_HOSTS if name in environ), None)
    if hosts is None:
        return ClusterInfo(
            kind="tpu", name="Cloud TPU VM", coordinator_address=address, knows_address=True
        )
    hosts_per_slice = len(hosts.split(","))
    slices = _number(environ, "MEGASCALE_NUM_SLICES") or 1
    if hosts_per_slice * slices < 2:
        return None
    worker, index = _number(environ, "TPU_WORKER_ID"), None
    if worker is not None:
        index = worker + hosts_per_slice * (_number(environ, "MEGASCALE_SLICE_ID") or 0)
    return ClusterInfo(
        kind="tpu",
        name="TPU pod" if slices == 1 else f"TPU pod of {slices} slices",
        num_processes=hosts_per_slice * slices,
        process_id=index,
        coordinator_address=address,
        knows_address=True,
    )


def _kubernetes(environ: Mapping[str, str], has_client: bool) -> ClusterInfo | None:
    """Reads an Indexed Job (a JobSet makes such); other pods of a cluster are alone."""
    if "KUBERNETES_SERVICE_HOST" not in environ:
        return None
    address, count = _address(environ), _number(environ, "JAX_NUM_PROCESSES")
    if count == 1:
        return None
    if address is None and not has_client:
        _LOG.warning(
            "This is index %s of a Kubernetes Job, and it runs alone. To join its pods, set "
            "JAX_COORDINATOR_ADDRESS and JAX_NUM_PROCESSES, or install jax[k8s]; to stay alone "
            "without this line, set JAX_NUM_PROCESSES=1.",
            environ["JOB_COMPLETION_INDEX"],
        )
        return None
    return ClusterInfo(
        kind="kubernetes",
        name="Kubernetes Job",
        num_processes=count,
        process_id=_number(environ, "JOB_COMPLETION_INDEX"),
        coordinator_address=address,
        knows_address=has_client,
    )


def _address(environ: Mapping[str, str]) -> str | None:
    return environ.get("JAX_COORDINATOR_ADDRESS") or None


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
