"""Which devices, in which shape? The mesh, from four axis sizes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

from xtrainer.config import Config, check_configs
from xtrainer.errors import MeshError


@dataclass(frozen=True, kw_only=True)
class ParallelConfig(Config):
    """How the devices are divided and what is spread over them."""

    data_axis_size: int = -1
    """Devices that hold different rows of a batch and the same parameters; -1: all that are
    left."""
    fsdp_axis_size: int = 1
    """Devices that hold different rows of a batch and different parts of the parameters."""
    pipeline_axis_size: int = 1
    """Devices that hold different layers."""
    model_axis_size: int = 1
    """Devices that hold different parts of one layer (tensor parallelism)."""
    data_axis_name: str = "dp"
    """Name of the data axis."""
    fsdp_axis_name: str = "fsdp"
    """Name of the axis that parameters are sharded over."""
    pipeline_axis_name: str = "pp"
    """Name of the pipeline axis."""
    model_axis_name: str = "tp"
    """Name of the tensor axis."""
    fsdp_min_weight_size: int = 2**18
    """Parameters with fewer elements than this stay whole on every device."""
    param_rules: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    """``(pattern of the parameter path, one axis name, tuple of names or None per dimension)``; the
    first match wins over the FSDP default."""

    @property
    def axis_names(self) -> tuple[str, str, str, str]:
        """The four axis names in mesh order."""
        return (
            self.data_axis_name,
            self.fsdp_axis_name,
            self.pipeline_axis_name,
            self.model_axis_name,
        )

    @property
    def axis_sizes(self) -> dict[str, int]:
        """Requested sizes by axis name; at most one is -1."""
        sizes = (
            self.data_axis_size,
            self.fsdp_axis_size,
            self.pipeline_axis_size,
            self.model_axis_size,
        )
        return dict(zip(self.axis_names, sizes, strict=True))

    def problems(self) -> list[str]:
        """Returns sizes, names and rules that cannot make a mesh."""
        found = []
        if len(set(self.axis_names)) < 4:
            found.append(f"axis names: found {self.axis_names}, expected four different names.")
            return found
        sizes = self.axis_sizes
        if any(size < 1 and size != -1 for size in sizes.values()):
            found.append(f"axis sizes: found {sizes}, expected sizes >= 1, or one -1.")
        if sum(size == -1 for size in sizes.values()) > 1:
            found.append(f"axis sizes: found {sizes}, expected at most one -1.")
        if self.fsdp_min_weight_size < 0:
            found.append(
                f"fsdp_min_weight_size: found {self.fsdp_min_weight_size}, expected a number >= 0."
            )
        for pattern, spec in self.param_rules:
            unknown = [name for name in _names(spec) if name not in self.axis_names]
            if unknown:
                found.append(
                    f"param_rules: the rule for {pattern!r} names the axes {unknown}; the mesh has "
                    f"{list(self.axis_names)}."
                )
        return found


def build_mesh(config: ParallelConfig | None = None, devices: Sequence[Any] | None = None) -> Mesh:
    """Returns a mesh over all devices with the axes of ``config``, every axis of type ``Auto``.

    Args:
        config: Axis sizes and names; all devices on the data axis where None.
        devices: Devices to use, all of the process group where None.

    Raises:
        MeshError: If the product of the sizes is not the number of devices.
        ConfigError: If the config itself is wrong.

    Example:
        >>> build_mesh(ParallelConfig(data_axis_size=1), jax.devices()[:1]).axis_names
        ('dp', 'fsdp', 'pp', 'tp')
    """
    config = config or ParallelConfig()
    check_configs(parallel=config)
    devices = jax.devices() if devices is None else devices
    sizes = _resolve_sizes(config.axis_sizes, len(devices))
    return jax.make_mesh(
        tuple(sizes.values()), tuple(sizes), (AxisType.Auto,) * len(sizes), devices=devices
    )


def check_mesh(mesh: Mesh) -> None:
    """Raises for a mesh that models without annotations cannot run on.

    Raises:
        MeshError: If an axis is of type ``Explicit``.
    """
    explicit = [
        name
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind == AxisType.Explicit
    ]
    if explicit:
        raise MeshError(
            f"The mesh axes {explicit} are of type Explicit, expected Auto. Build the mesh with "
            "xtrainer.build_mesh, or pass axis_types=(AxisType.Auto,) * n to jax.make_mesh."
        )


def _resolve_sizes(sizes: dict[str, int], num_devices: int) -> dict[str, int]:
    fixed = math.prod(size for size in sizes.values() if size != -1)
    resolved = {
        name: max(num_devices // fixed, 1) if size == -1 else size for name, size in sizes.items()
    }
    if math.prod(resolved.values()) != num_devices:
        raise MeshError(
            f"Mesh sizes {sizes} do not fit {num_devices} devices. Give sizes whose product is the "
            "device count, or set one of them to -1."
        )
    return resolved


def _names(spec: Sequence[Any]) -> list[str]:
    names = []
    for axis in spec:
        names += list(axis) if isinstance(axis, list | tuple) else [axis]
    return [name for name in names if name is not None]
