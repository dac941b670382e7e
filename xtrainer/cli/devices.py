"""Which devices are asked about? Those there are, virtual ones, or a TPU that is not there."""

import functools
import os
from typing import Any

import jax
from jax.experimental import topologies

from xtrainer.cli.usage import UsageError
from xtrainer.errors import require

_QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",  # no question to a cloud's metadata server
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",  # asked for and not used
    "TPU_LOG_DIR": "disabled",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}

_TWO_CORES = ("TPU v2", "TPU v3")  # of later kinds both cores of a chip are one device


def choose_devices(count: int | None = None, target: str | None = None) -> list[Any]:
    """Returns the devices of a plan; called before JAX has looked for any.

    Args:
        count: Virtual devices of the CPU; None: the machine's own devices.
        target: A TPU topology as ``v5e:2x4``, whose devices can be compiled for and run nothing.

    Raises:
        UsageError: If JAX has started with fewer devices, or there is no such topology.
        MissingDependencyError: If a topology is asked for and the TPU's compiler is missing.
    """
    # Planning beside a run must not take the memory of its accelerator.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if target is not None:
        return _topology(target)
    if count is None:
        return jax.devices()
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:  # JAX has started
        if len(jax.devices("cpu")) < count:
            raise UsageError(
                f"Found {len(jax.devices('cpu'))} CPU devices that JAX has started with, expected "
                f"{count}. Ask in a new process."
            ) from None
    else:
        jax.config.update("jax_platforms", "cpu")
    return jax.devices("cpu")[:count]


def _topology(target: str) -> list[Any]:
    require("libtpu", "tpu")
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")  # what little is computed is computed there
    describe = functools.partial(topologies.get_topology_desc, platform="tpu")
    try:
        found = describe(topology_name=target).devices
        if any(device.core_on_chip for device in found) and found[0].device_kind not in _TWO_CORES:
            found = describe(topology_name=target, chip_config_name="megacore").devices
    except Exception as error:  # of several classes, by the version of libtpu
        raise UsageError(
            f"--target: found {target!r}, of which the TPU's compiler says: {error} Expected a "
            "kind and a shape, as in v5e:2x4 or v4:2x2x1."
        ) from error
    return list(found)
