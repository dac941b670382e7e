"""How is a whole train state laid out? Every leaf that mirrors a parameter follows it."""

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from xtrainer.errors import MeshError
from xtrainer.parallel.mesh import ParallelConfig
from xtrainer.parallel.rules import Annotations, lay_out
from xtrainer.tree import flatten_with_paths, map_with_paths
from xtrainer.types import PyTree

HOST_MEMORY = "pinned_host"
"""Memory of a host that its devices can read from and write to."""


def state_shardings(
    state: Any, mesh: Mesh, config: ParallelConfig, annotations: Annotations | None = None
) -> Any:
    """Returns a sharding for each leaf of a train state.

    A leaf belongs to the parameter whose path ends its own path and whose shape it has
    (``opt_state/0/mu/dense/kernel`` and ``ema/dense/kernel`` to ``dense/kernel``), so that wrapped,
    masked and multi-transform optimizers and averages need no help; so does one in
    ``opt_state`` that holds several of that shape along a first axis, as the memory of L-BFGS. What
    belongs to no parameter is replicated. With ``config.offload_optimizer_state`` what belongs to
    one in ``opt_state`` lies in the memory of the hosts.

    Args:
        state: A ``TrainState`` of arrays or ``ShapeDtypeStruct``s, without boxes; any tree with
            ``params``.
        mesh: The device mesh.
        config: The rules.
        annotations: The model's metadata, of :func:`xtrainer.parallel.read_annotations`.

    Raises:
        ConfigError: For metadata and rules that do not fit the parameter they lay out.
        MeshError: If the optimizer's state shall be offloaded and the devices see no host memory.
    """
    if config.offload_optimizer_state:
        _check_host_memory(mesh)
    specs = lay_out(state.params, mesh, config, annotations).specs
    shapes = {path: leaf.shape for path, leaf in flatten_with_paths(state.params).items()}

    def sharding(path: str, leaf: Any) -> NamedSharding:
        owner, ahead, of_optimizer = _owner(path, leaf.shape, shapes), (), _is_of_optimizer(path)
        if owner is None and of_optimizer:
            owner, ahead = _owner(path, leaf.shape[1:], shapes), (None,)
        if owner is None:
            return NamedSharding(mesh, PartitionSpec())
        spec = PartitionSpec(*ahead, *specs[owner])
        hosted = config.offload_optimizer_state and of_optimizer
        return NamedSharding(mesh, spec, memory_kind=HOST_MEMORY if hosted else None)

    return map_with_paths(sharding, state)


def param_shardings(
    params: PyTree, mesh: Mesh, config: ParallelConfig, annotations: Annotations | None = None
) -> PyTree:
    """Returns a sharding for each parameter; see :func:`state_shardings`."""
    specs = lay_out(params, mesh, config, annotations).specs
    return map_with_paths(lambda path, _: NamedSharding(mesh, specs[path]), params)


def _check_host_memory(mesh: Mesh) -> None:
    own = [d for d in mesh.devices.flat if d.process_index == jax.process_index()]
    device = (own or list(mesh.devices.flat))[0]
    found = [memory.kind for memory in device.addressable_memories()]
    if HOST_MEMORY not in found:
        raise MeshError(
            f"parallel.offload_optimizer_state: found devices of kind {device.device_kind!r} with "
            f"the memories {found}, expected {HOST_MEMORY!r} among them. Turn it off on this "
            "backend, or spread the state over more devices (fsdp_axis_size)."
        )


def _is_of_optimizer(path: str) -> bool:
    return path.startswith("opt_state/")


def _owner(path: str, shape: tuple[int, ...], shapes: dict[str, tuple[int, ...]]) -> str | None:
    parts = path.split("/")
    for start in range(1, len(parts)):  # the longest suffix first; the first part names the field
        suffix = "/".join(parts[start:])
        if shapes.get(suffix) == shape:
            return suffix
    return None
