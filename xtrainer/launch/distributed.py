"""How do several processes become one run? ``jax.distributed``, started once and early."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import jax

from xtrainer.errors import ConfigError, DeviceError
from xtrainer.launch.cluster import ClusterInfo, detect_cluster
from xtrainer.launch.exchange import num_processes, runtime_process
from xtrainer.launch.exits import is_program_of_runs
from xtrainer.launch.meeting import check_port, meeting
from xtrainer.launch.peers import watch

_LOG = logging.getLogger(__name__)
_PROXIES = ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy")
_LATER_S = 60
"""How much longer JAX waits for the others at the start: its own way is to abort."""
_LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")


@dataclass(frozen=True, kw_only=True)
class LaunchInfo:
    """Where this process stands in the run.

    Attributes:
        process_index: The number of this process, from 0.
        process_count: How many processes the run has.
        source: ``"single"``, ``"arguments"``, ``"slurm"``, ``"ompi"``, ``"tpu"``,
            ``"kubernetes"``, ``"environment"``, or ``"running"`` where JAX's distributed runtime
            was up already.
    """

    process_index: int = 0
    process_count: int = 1
    source: str = "single"

    @property
    def is_main(self) -> bool:
        """Says whether this process writes logs and speaks for the run."""
        return self.process_index == 0


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    platform: str | None = None,
    device_ids: Sequence[int] | None = None,
    timeout_s: int = 300,
    heartbeat_timeout_s: int | None = None,
    failure_grace_s: float = 5.0,
) -> LaunchInfo:
    """Joins the processes of a run; call it before anything touches a device.

    Without arguments the launcher is found in the environment (SLURM, Open MPI, a TPU pod or a
    Kubernetes Job with more than one process, or ``JAX_COORDINATOR_ADDRESS``), and logged; where
    there is none, this process is the whole run and nothing is started. A second call gives what
    is running and starts nothing. The program ends with the exit code of what has ended it: see
    ``xtrainer.launch.exits``.

    Args:
        coordinator_address: ``host:port`` of process 0. A loopback host is bound on loopback only.
        num_processes: How many processes the run has.
        process_id: The number of this one, from 0.
        platform: ``"cpu"``, ``"cuda"``, ``"rocm"``, ``"tpu"`` (``"gpu"`` is ``"cuda"``).
        device_ids: This machine's GPUs for the process; needs a GPU ``platform``.
        timeout_s: How long to wait for the other processes; then this one ends with an error.
        heartbeat_timeout_s: Silence after which a process counts as dead, which ends the others;
            None: 20 where all are on this machine, else 30.
        failure_grace_s: How long the others may take to end by themselves when one process has
            failed; then they are ended, with that process's error.

    Raises:
        ConfigError: For arguments that do not fit together, a platform that cannot be chosen any
            more, devices that JAX has started already, or a port that is taken.

    Example:
        >>> initialize().process_count
        1
    """
    wrong = _argument_problems(coordinator_address, num_processes, process_id)
    if wrong := [*wrong, *_device_problems(platform, device_ids)]:
        raise ConfigError(wrong)
    is_program_of_runs()
    if jax.distributed.is_initialized():
        watch(failure_grace_s)
        return _running(num_processes, process_id)
    request, source = _find_request(coordinator_address, num_processes, process_id)
    if request is not None and _backend_is_up():
        raise ConfigError(
            f"JAX has started its devices already, and now {source} asks it to join "
            f"{request.get('num_processes', 'several')} processes. Call xtrainer's initialize() "
            "first in the program: before jax.devices(), any array and any TrainerModule."
        )
    _choose_devices(platform, device_ids)
    if request is None:
        return LaunchInfo()
    if device_ids is not None:
        request["local_device_ids"] = list(device_ids)
    info = _start(request, source, timeout_s, heartbeat_timeout_s)
    watch(failure_grace_s)
    return info


def is_main_process() -> bool:
    """Says whether this is process 0; starts JAX's devices where they are not."""
    return process_index() == 0


def process_index() -> int:
    """Returns the number of this process, from 0; starts JAX's devices where they are not.

    Raises:
        DeviceError: If JAX cannot start any.
    """
    try:
        return jax.process_index()
    except (AssertionError, RuntimeError) as error:  # the former where jaxlib knows no such devices
        raise devices_missing(error) from None


def devices_missing(error: Exception) -> DeviceError:
    """Returns what to say where JAX cannot start the devices that it was asked for."""
    asked = os.environ.get("JAX_PLATFORMS") or jax.config.values["jax_platforms"] or ""
    said = f" ({error})" if str(error) else ""
    return DeviceError(
        f"JAX cannot start the devices it is asked for, JAX_PLATFORMS={asked!r}{said}. Expected "
        "devices that this machine has and that the installed jaxlib is built for. Install JAX's "
        'build for them, pip install "xtrainer[cuda13]", "xtrainer[cuda12]" or "xtrainer[tpu]", '
        "look whether the driver sees them (nvidia-smi), or set JAX_PLATFORMS=cpu to use the CPU."
    )


def process_count() -> int:
    """Returns the number of processes; starts JAX's devices where they are not."""
    return jax.process_count()


def _argument_problems(address: str | None, count: int | None, index: int | None) -> list[str]:
    given = {"coordinator_address": address, "num_processes": count, "process_id": index}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == 3:
        return []
    if missing:
        found = ", ".join(f"{name}={value!r}" for name, value in given.items() if value is not None)
        return [f"Found {found} without {' and '.join(missing)}. Give all three, or none of them."]
    problems = []
    host, _, port = str(address).rpartition(":")
    if not host or not port.isdecimal():
        problems.append(
            f"coordinator_address: found {address!r}, expected 'host:port', "
            "for example '10.0.0.1:1234'."
        )
    if not isinstance(count, int) or count < 1:
        problems.append(f"num_processes: found {count!r}, expected a whole number >= 1.")
    elif not isinstance(index, int) or not 0 <= index < count:
        problems.append(f"process_id: found {index!r}, expected a number from 0 to {count - 1}.")
    return problems


def _device_problems(platform: str | None, device_ids: Sequence[int] | None) -> list[str]:
    if platform is not None and _backend_is_up() and jax.default_backend() != _kind(platform):
        return [
            f"platform: found {platform!r}, but JAX has started {jax.default_backend()!r} already. "
            "Call initialize() before anything touches a device."
        ]
    if device_ids is None:
        return []
    if platform == "tpu":
        return [
            "device_ids: JAX chooses TPU chips by the environment only. "
            "Set TPU_VISIBLE_CHIPS before the program starts."
        ]
    if platform is None or _kind(platform) != "gpu":
        return [
            f"device_ids: found {list(device_ids)} with platform={platform!r}; only GPUs are "
            "chosen by number. Give platform='cuda' (or 'rocm'), or leave device_ids out."
        ]
    if not device_ids or not all(isinstance(i, int) and i >= 0 for i in device_ids):
        return [f"device_ids: found {list(device_ids)}, expected one or more numbers >= 0."]
    if _backend_is_up():
        return ["device_ids: JAX has started its devices already. Call initialize() before that."]
    return []


def _kind(platform: str) -> str:
    return "gpu" if platform in ("gpu", "cuda", "rocm") else platform


def _backend_is_up() -> bool:
    # JAX has no public way to ask this without starting the devices.
    from jax._src import xla_bridge

    return xla_bridge.backends_are_initialized()


def _running(num_processes: int | None, process_id: int | None) -> LaunchInfo:
    info = LaunchInfo(
        process_index=jax.process_index(), process_count=jax.process_count(), source="running"
    )
    asked = (num_processes, process_id)
    if asked != (None, None) and asked != (info.process_count, info.process_index):
        raise ConfigError(
            f"initialize() asks for process {process_id} of {num_processes}, but this is already "
            f"process {info.process_index} of {info.process_count}. Call it once, or with the same "
            "arguments."
        )
    return info


def _find_request(
    address: str | None, count: int | None, index: int | None
) -> tuple[dict[str, Any] | None, str]:
    """Returns what to ask of ``jax.distributed.initialize``, None for one process, and who asks."""
    if address is not None:
        if count == 1:
            return None, "single"
        explicit = {
            "coordinator_address": address,
            "num_processes": count,
            "process_id": index,
            "cluster_detection_method": "deactivate",
        }
        return explicit, "arguments"
    cluster = detect_cluster(os.environ, _on_tpu_vm(), find_spec("kubernetes") is not None)
    if cluster is None or cluster.num_processes == 1:
        return None, "single"
    if cluster.kind == "tpu" and cluster.num_processes is None and _backend_is_up():
        if jax.process_count() == 1:  # a TPU VM that is no pod, say in a notebook
            return None, "single"
    _LOG.info("Joining %s", cluster.description)
    return _cluster_request(cluster), cluster.kind


def _cluster_request(cluster: ClusterInfo) -> dict[str, Any]:
    request: dict[str, Any] = {
        "coordinator_address": cluster.coordinator_address,
        "num_processes": cluster.num_processes,
        "process_id": cluster.process_id,
    }
    if cluster.kind == "ompi" and not (cluster.coordinator_address or cluster.knows_address):
        raise ConfigError(
            f"Open MPI started {cluster.num_processes} processes but gives no address to meet at "
            "(versions from 5 on do not). Set JAX_COORDINATOR_ADDRESS to host:port of rank 0, the "
            "same for every rank."
        )
    if cluster.kind in ("environment", "kubernetes") and None not in request.values():
        request["cluster_detection_method"] = "deactivate"  # nothing is left for JAX to find
    if cluster.local_process_id is not None and not cluster.knows_address:
        request["local_device_ids"] = [cluster.local_process_id]  # one GPU a rank, as JAX does
    return {name: value for name, value in request.items() if value is not None}


def _on_tpu_vm() -> bool:
    # JAX looks for the chips while it is imported and offers no public way to ask.
    from jax._src import cloud_tpu_init

    platforms = jax.config.values["jax_platforms"] or "tpu"
    return cloud_tpu_init.running_in_cloud_tpu_vm and "tpu" in platforms


def _choose_devices(platform: str | None, device_ids: Sequence[int] | None) -> None:
    if platform is not None and not _backend_is_up():
        name = "cuda" if platform == "gpu" else platform
        # The CPU stays reachable beside an accelerator: host arrays live there.
        jax.config.update("jax_platforms", name if name == "cpu" else f"{name},cpu")
    if device_ids is not None:
        vendor = "rocm" if platform == "rocm" else "cuda"
        jax.config.update(f"jax_{vendor}_visible_devices", ",".join(map(str, device_ids)))


def _start(
    request: dict[str, Any], source: str, timeout_s: int, heartbeat_timeout_s: int | None
) -> LaunchInfo:
    address = request.get("coordinator_address")
    local = address is not None and address.rpartition(":")[0] in _LOOPBACK
    if local:
        # JAX would listen on every network interface of the machine.
        request["coordinator_bind_address"] = address
        if any(name.lower() in _PROXIES for name in os.environ):
            # Even loopback would be looked for behind the proxy, for ever.
            os.environ.setdefault("no_grpc_proxy", "127.0.0.1,localhost,::1")
    index = request.get("process_id")
    if address is not None and index == 0:
        check_port(address)
    try:
        with meeting(address, index, request.get("num_processes"), timeout_s):
            jax.distributed.initialize(
                **request,
                initialization_timeout=timeout_s + _LATER_S,
                # A dead process is found after half of it at the earliest: later than the grace
                # after a failure, so that the others show the failure before JAX aborts them.
                heartbeat_timeout_seconds=heartbeat_timeout_s or (20 if local else 30),
            )
    except (ValueError, ImportError) as error:  # JAX's own detection of TPU pods and Kubernetes
        raise ConfigError(
            f"JAX could not join the processes found in {source} ({error}). Pass "
            "coordinator_address, num_processes and process_id to initialize(), or set "
            "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID."
        ) from error
    return LaunchInfo(process_index=runtime_process(), process_count=num_processes(), source=source)
