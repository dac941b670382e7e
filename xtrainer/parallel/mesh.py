"""Which devices, in which shape? The mesh, from four axis sizes."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, PartitionSpec

from xtrainer.config import Config, check_configs
from xtrainer.errors import MeshError, did_you_mean, readable
from xtrainer.launch.distributed import devices_missing
from xtrainer.parallel.patterns import pattern_problem
from xtrainer.parallel.remat import REMAT_POLICIES

AxisRule = str | tuple[str, ...] | list[str] | None
"""Mesh axes that one dimension is spread over; None: it stays whole."""


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
    dcn_data_axis_size: int = 1
    """How many slices (groups of devices with a slower network between them) the data axis is
    divided over; -1: as many as the devices lie on. Where they do not form that many slices, as
    many processes count."""
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
    param_rules: tuple[tuple[str, tuple[Any, ...] | PartitionSpec], ...] = ()
    """``(pattern of the parameter path, one axis name, tuple of names or None per dimension)``; the
    first match wins over the FSDP default, the model's own metadata wins over both. A pattern is a
    glob or a regular expression, see :func:`xtrainer.parallel.patterns.path_matches`."""
    logical_axis_rules: tuple[tuple[str, AxisRule], ...] = ()
    """``(logical axis name, mesh axis, tuple of mesh axes or None)`` for models annotated with
    logical axes; the first match whose mesh axes are free wins, as in Flax."""
    remat: tuple[str, ...] = ()
    """Linen modules whose activations are computed again in the backward pass instead of kept: by
    class name (``Block``) or path (``block_*``), see :func:`xtrainer.parallel.remat.names_module`.
    """
    remat_policy: str = "nothing_saveable"
    """What these modules keep besides their inputs, by the names of ``jax.checkpoint_policies``:
    ``nothing_saveable``, ``dots_with_no_batch_dims_saveable`` (products of activations with
    parameters), ``dots_saveable`` (those of attention as well), ``everything_saveable``."""
    offload_optimizer_state: bool = False
    """Keep what the optimizer keeps of each parameter (moments, say) in the memory of the hosts
    between two steps, and move it to the devices within a step: less memory, slower steps."""

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
        if self.dcn_data_axis_size < 1 and self.dcn_data_axis_size != -1:
            found.append(
                f"dcn_data_axis_size: found {self.dcn_data_axis_size}, expected a number >= 1, or "
                "-1 for as many as there are slices."
            )
        if self.fsdp_min_weight_size < 0:
            found.append(
                f"fsdp_min_weight_size: found {self.fsdp_min_weight_size}, expected a number >= 0."
            )
        if self.remat_policy not in REMAT_POLICIES:
            hint = did_you_mean(self.remat_policy, REMAT_POLICIES)
            found.append(f"remat_policy: found {self.remat_policy!r}. {hint}")
        elif self.remat_policy != "nothing_saveable" and not self.remat:
            found.append(
                f"remat_policy: found {self.remat_policy!r} with remat=(), expected modules that "
                "are computed again. Name them in remat."
            )
        return found + self._rule_problems()

    def _rule_problems(self) -> list[str]:
        rules = [("param_rules", name, spec) for name, spec in self.param_rules]
        rules += [("logical_axis_rules", name, (axes,)) for name, axes in self.logical_axis_rules]
        found = []
        for field, name, spec in rules:
            unknown = [axis for axis in _names(spec) if axis not in self.axis_names]
            if unknown:
                found.append(
                    f"{field}: the rule for {name!r} names the axes {unknown}; the mesh has "
                    f"{list(self.axis_names)}."
                )
        patterns = [("param_rules", pattern) for pattern, _ in self.param_rules]
        patterns += [("remat", pattern) for pattern in self.remat]
        broken = [(field, pattern_problem(pattern)) for field, pattern in patterns]
        return found + [f"{field}: {problem}" for field, problem in broken if problem]


@readable
def build_mesh(config: ParallelConfig | None = None, devices: Sequence[Any] | None = None) -> Mesh:
    """Returns a mesh over all devices with the axes of ``config``, every axis of type ``Auto``.

    The order of the devices is that of JAX for their topology; with several slices the data axis
    runs over them and every other axis stays inside one.

    Args:
        config: Axis sizes and names; all devices on the data axis where None.
        devices: Devices to use, all of the process group where None.

    Raises:
        MeshError: If the product of the sizes is not the number of devices, or the data axis
            cannot be divided over the slices.
        ConfigError: If the config itself is wrong.
        DeviceError: If JAX cannot start any devices.

    Example:
        >>> build_mesh(ParallelConfig(data_axis_size=1), jax.devices()[:1]).axis_names
        ('dp', 'fsdp', 'pp', 'tp')
    """
    config = config or ParallelConfig()
    check_configs(parallel=config)
    devices = _all_devices() if devices is None else list(devices)
    sizes = resolve_sizes(config.axis_sizes, len(devices))
    arranged = _arrange(tuple(sizes.values()), config.dcn_data_axis_size, devices)
    return Mesh(arranged, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def _all_devices() -> list[Any]:
    try:
        return jax.devices()
    except (AssertionError, RuntimeError) as error:
        raise devices_missing(error) from None


def check_mesh(mesh: Mesh, config: ParallelConfig | None = None) -> None:
    """Raises for a mesh that models without annotations cannot run on.

    A mesh that somebody else has built is used as it is: axes that it lacks are absent. Along an
    axis that the config does not name all devices would do the same work, so it must have size 1.

    Args:
        mesh: A mesh.
        config: Names of the axes; not compared where None.

    Raises:
        MeshError: If an axis is of type ``Explicit``, or larger than 1 and unknown to the config.
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
    known = mesh.axis_names if config is None else config.axis_names
    unknown = [str(name) for name, size in mesh.shape.items() if size > 1 and name not in known]
    if unknown:
        raise MeshError(
            f"The mesh {dict(mesh.shape)} has the axes {unknown} that ParallelConfig does not "
            f"name, expected {list(known)}: devices along another axis would all do the same work. "
            "Name it there, for example data_axis_name."
        )


def resolve_sizes(sizes: Mapping[str, int], num_devices: int) -> dict[str, int]:
    """Returns the sizes with the device count's remaining factor for -1.

    Raises:
        MeshError: If the product of the sizes is not the number of devices; it shows sizes near
            to those asked for whose product is.

    Example:
        >>> resolve_sizes({"dp": -1, "fsdp": 4}, 8)
        {'dp': 2, 'fsdp': 4}
    """
    fixed = math.prod(size for size in sizes.values() if size != -1)
    resolved = {
        name: max(num_devices // fixed, 1) if size == -1 else size for name, size in sizes.items()
    }
    if math.prod(resolved.values()) != num_devices:
        nearest = ", or ".join(str(found) for found in nearest_sizes(sizes, num_devices))
        raise MeshError(
            f"Mesh sizes {dict(sizes)} do not fit {num_devices} devices. Give sizes whose product "
            f"is the device count, or set one of them to -1. Nearest that fit: {nearest}."
        )
    return resolved


def nearest_sizes(
    sizes: Mapping[str, int], num_devices: int, count: int = 3
) -> list[dict[str, int]]:
    """Returns up to ``count`` mesh sizes that fit, those first that change the fewest axes.

    Among those with as many changes, those that change the first axis come first, then those whose
    sizes are nearest by ratio. An axis of -1 may take any size.

    Example:
        >>> nearest_sizes({"dp": 4, "fsdp": 4}, 8, count=2)
        [{'dp': 2, 'fsdp': 4}, {'dp': 4, 'fsdp': 2}]
    """

    def distance(candidate: tuple[int, ...]) -> tuple[Any, ...]:
        pairs = list(enumerate(zip(sizes.values(), candidate, strict=True)))
        changed = [axis for axis, (asked, size) in pairs if asked not in (-1, size)]
        ratios = [abs(math.log(pairs[axis][1][1] / pairs[axis][1][0])) for axis in changed]
        larger_first = [-size for size in candidate]
        return len(changed), 0 not in changed, round(sum(ratios), 9), changed, larger_first

    fitting = sorted(_factorizations(num_devices, len(sizes)), key=distance)
    return [dict(zip(sizes, candidate, strict=True)) for candidate in fitting[:count]]


def _factorizations(number: int, parts: int) -> Iterator[tuple[int, ...]]:
    if parts == 1:
        yield (number,)
        return
    for first in range(1, number + 1):
        if number % first == 0:
            for rest in _factorizations(number // first, parts - 1):
                yield (first, *rest)


def _arrange(shape: tuple[int, ...], dcn_data_axis_size: int, devices: list[Any]) -> np.ndarray:
    slices = Counter(getattr(device, "slice_index", 0) for device in devices)
    processes = Counter(device.process_index for device in devices)
    granules = len(slices) if dcn_data_axis_size == -1 else dcn_data_axis_size
    if granules == 1 and len(slices) == 1:
        names = tuple(f"axis_{index}" for index in range(len(shape)))
        kinds = (AxisType.Auto,) * len(shape)
        return jax.make_mesh(shape, names, kinds, devices=devices).devices
    if granules == 1:  # jax.make_mesh refuses several slices
        if devices[0].platform == "tpu":
            raise MeshError(
                f"The {len(devices)} devices lie on {len(slices)} slices and dcn_data_axis_size is "
                "1. Set dcn_data_axis_size=-1: the data axis runs over the slices."
            )
        return mesh_utils.create_device_mesh(shape, devices)
    groups = next((found for found in (slices, processes) if len(found) == granules), None)
    if groups is None or len(set(groups.values())) > 1 or shape[0] % granules:
        raise MeshError(
            f"A data axis of {shape[0]} cannot be divided over dcn_data_axis_size={granules}: the "
            f"{len(devices)} devices lie on {len(slices)} slices of {sorted(slices.values())} "
            f"devices, in {len(processes)} processes of {sorted(processes.values())} devices. "
            "Choose the number of slices or of processes, and a data axis that it divides."
        )
    return mesh_utils.create_hybrid_device_mesh(
        (shape[0] // granules, *shape[1:]),
        (granules, *(1,) * (len(shape) - 1)),
        devices,
        process_is_granule=groups is processes,
        allow_split_physical_axes=True,
    )


def _names(spec: Iterable[Any]) -> list[str]:
    names = []
    for axis in spec:
        names += list(axis) if isinstance(axis, list | tuple) else [axis]
    return [name for name in names if name is not None]
