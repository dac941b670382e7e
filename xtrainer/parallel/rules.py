"""Which axes does a parameter spread over? Rules by path first, then the FSDP default."""

import math
from collections.abc import Sequence
from typing import Any

from jax.sharding import Mesh, PartitionSpec

from xtrainer.errors import ConfigError
from xtrainer.parallel.mesh import ParallelConfig
from xtrainer.tree import flatten_with_paths, matches
from xtrainer.types import PyTree


def param_specs(params: PyTree, mesh: Mesh, config: ParallelConfig) -> dict[str, PartitionSpec]:
    """Returns the partition of each parameter by its path.

    Args:
        params: Parameters or their ``ShapeDtypeStruct``s.
        mesh: The mesh whose axes the specs name.
        config: The rules.

    Raises:
        ConfigError: For every rule that does not fit the parameter it matches.
    """
    specs, problems = {}, []
    for path, leaf in flatten_with_paths(params).items():
        rule = next((rule for rule in config.param_rules if matches(rule[0], path)), None)
        if rule is None:
            specs[path] = fsdp_spec(leaf.shape, mesh, config)
            continue
        spec = PartitionSpec(*(tuple(a) if isinstance(a, list) else a for a in rule[1]))
        problem = _misfit(spec, leaf.shape, mesh)
        if problem:
            problems.append(
                f"parallel.param_rules: the rule for {rule[0]!r} at {path!r}: {problem}"
            )
        specs[path] = spec
    if problems:
        raise ConfigError(problems)
    return specs


def fsdp_spec(shape: Sequence[int], mesh: Mesh, config: ParallelConfig) -> PartitionSpec:
    """Returns the default: the largest axis that the FSDP axis divides, of large enough arrays.

    Zhao et al., PyTorch FSDP, 2023 (https://arxiv.org/abs/2304.11277); Rajbhandari et al., ZeRO,
    2020 (https://arxiv.org/abs/1910.02054).
    """
    size = mesh.shape.get(config.fsdp_axis_name, 1)
    divisible = [axis for axis, length in enumerate(shape) if length % size == 0]
    if size == 1 or not divisible or math.prod(shape) < config.fsdp_min_weight_size:
        return PartitionSpec()
    largest = max(divisible, key=lambda axis: shape[axis])
    return PartitionSpec(
        *(config.fsdp_axis_name if a == largest else None for a in range(len(shape)))
    )


def _misfit(spec: PartitionSpec, shape: Sequence[int], mesh: Mesh) -> str | None:
    used = [name for names in spec for name in _axes(names)]
    for name in used:
        if name not in mesh.shape:
            return f"the mesh has no axis {name!r}, only {list(mesh.axis_names)}."
        if used.count(name) > 1:
            return f"the axis {name!r} is named twice."
    if len(spec) > len(shape):
        return f"{len(spec)} entries for an array of shape {tuple(shape)}."
    for axis, names in enumerate(spec):
        parts = math.prod(mesh.shape[name] for name in _axes(names))
        if shape[axis] % parts:
            return f"dimension {axis} of {tuple(shape)} does not divide by {parts} ({names!r})."
    return None


def _axes(names: Any) -> tuple[str, ...]:
    if names is None:
        return ()
    return names if isinstance(names, tuple) else (names,)
