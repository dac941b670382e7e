"""Which axes does a parameter spread over? What the model says, rules by path, the FSDP default."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jax.sharding import Mesh, PartitionSpec

from xtrainer.errors import ConfigError
from xtrainer.parallel.annotations import AxisNames
from xtrainer.parallel.mesh import ParallelConfig
from xtrainer.parallel.patterns import path_matches
from xtrainer.tree import flatten_with_paths
from xtrainer.types import PyTree

Annotations = Mapping[str, AxisNames]
MODEL, DEFAULT = "the model's metadata", "the default"


@dataclass(frozen=True)
class ParamLayout:
    """How parameters are laid out, and why.

    Attributes:
        specs: The partition of each parameter by its path.
        origins: What decided each: the model's metadata, a rule (its pattern) or the default.
        unused: One sentence for each rule that laid out nothing, and for the logical axes without
            a rule.
    """

    specs: dict[str, PartitionSpec]
    origins: dict[str, str]
    unused: tuple[str, ...]


def lay_out(
    params: PyTree, mesh: Mesh, config: ParallelConfig, annotations: Annotations | None = None
) -> ParamLayout:
    """Returns the layout of all parameters; for each the first that says something decides.

    First the model's metadata, then the first of ``param_rules`` whose pattern names the path, then
    the default of :func:`fsdp_spec`.

    Args:
        params: Parameters or their ``ShapeDtypeStruct``s, without boxes.
        mesh: The mesh whose axes the specs name.
        config: The rules.
        annotations: The model's metadata, of :func:`xtrainer.parallel.read_annotations`.

    Raises:
        ConfigError: For all metadata and rules that do not fit the parameter they lay out.

    Example:
        >>> import jax.numpy as jnp
        >>> from xtrainer.parallel import build_mesh
        >>> mesh = build_mesh(ParallelConfig())
        >>> rules = (("*/kernel", (None, "tp")), ("*/scale", ()))
        >>> params = {"up": {"kernel": jnp.ones((2, 4)), "bias": jnp.ones(4)}}
        >>> layout = lay_out(params, mesh, ParallelConfig(param_rules=rules))
        >>> layout.specs["up/kernel"], layout.origins["up/bias"]
        (P(None, 'tp'), 'the default')
        >>> layout.unused
        ("parallel.param_rules: the pattern '*/scale' names no parameter.",)
    """
    annotations = annotations or {}
    specs, origins, problems = {}, {}, []
    for path, leaf in flatten_with_paths(params).items():
        origin, label, problem = DEFAULT, "", None
        try:
            origin, label, spec = _decide(path, leaf.shape, mesh, config, annotations.get(path))
            problem = _misfit(spec, leaf.shape, mesh)
        except ValueError as error:  # Flax's, for one name of two dimensions
            label, spec, problem = f"parallel: {MODEL} at {path!r}", PartitionSpec(), f"{error}"
        if problem is not None:
            problems.append(f"{label}: {problem}")
        specs[path], origins[path] = spec, origin
    if problems:
        raise ConfigError(problems)
    unused = (*_unused(origins, config, annotations), *_idle_stages(specs, mesh, config))
    return ParamLayout(specs, origins, unused)


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


def _decide(
    path: str,
    shape: tuple[int, ...],
    mesh: Mesh,
    config: ParallelConfig,
    names: AxisNames | None,
) -> tuple[str, str, PartitionSpec]:
    """Returns what decides, how a message calls it, and the partition."""
    if names is not None and names.stacked:
        return _decide_stacked(path, shape, mesh, config, names)
    spec = None if names is None else names.spec(mesh, config.logical_axis_rules)
    if names is not None and spec is not None:
        return MODEL, f"parallel: {MODEL} {names.names} at {path!r}", spec
    for pattern, axes in config.param_rules:
        if path_matches(pattern, path):
            label = f"parallel.param_rules: the rule for {pattern!r} at {path!r}"
            spec = PartitionSpec(*(tuple(a) if isinstance(a, list) else a for a in axes))
            return pattern, label, spec
    return DEFAULT, "", fsdp_spec(shape, mesh, config)


def _decide_stacked(
    path: str, shape: tuple[int, ...], mesh: Mesh, config: ParallelConfig, names: AxisNames
) -> tuple[str, str, PartitionSpec]:
    one = dataclasses.replace(names, stacked=False)
    origin, label, spec = _decide(path, shape[1:], mesh, config, one)
    stages = mesh.shape.get(config.pipeline_axis_name, 1)
    # Where the stages do not divide the layers, the model's pipeline says so.
    over = config.pipeline_axis_name if stages > 1 and shape[0] % stages == 0 else None
    if origin in (MODEL, DEFAULT):  # both speak of one layer, a rule of the whole array
        return origin, label, PartitionSpec(over, *spec)
    return origin, label, spec if any(spec[:1]) else PartitionSpec(over, *spec[1:])


def _unused(
    origins: Mapping[str, str], config: ParallelConfig, annotations: Annotations
) -> Iterator[str]:
    deciding = set(origins.values())
    for pattern, _ in config.param_rules:
        if any(path_matches(pattern, path) for path in origins):
            if pattern not in deciding:
                yield (
                    f"parallel.param_rules: the pattern {pattern!r} names only parameters that "
                    "the model or an earlier rule lays out."
                )
        else:
            yield f"parallel.param_rules: the pattern {pattern!r} names no parameter."
    logical = {
        name for names in annotations.values() if not names.rules for name in names.flat_names()
    }
    for name in dict.fromkeys(name for name, _ in config.logical_axis_rules):
        if name not in logical:
            yield f"parallel.logical_axis_rules: no parameter of the model has the axis {name!r}."
    missing: dict[str, str] = {}
    for path, names in annotations.items():
        for name in names.without_rule(config.logical_axis_rules):
            missing.setdefault(name, path)
    for name, path in missing.items():
        yield (
            f"parallel.logical_axis_rules: no rule for the logical axis {name!r} (as of {path!r}); "
            "its dimension stays whole."
            if config.logical_axis_rules
            else f"parallel.logical_axis_rules: no rules, and so the logical axis {name!r} (as of "
            f"{path!r}) says nothing."
        )


def _idle_stages(
    specs: Mapping[str, PartitionSpec], mesh: Mesh, config: ParallelConfig
) -> Iterator[str]:
    axis = config.pipeline_axis_name
    if mesh.shape.get(axis, 1) > 1 and not any(
        axis in _axes(names) for spec in specs.values() for names in spec
    ):
        yield (
            f"parallel.pipeline_axis_size: no parameter lies over the {mesh.shape[axis]} stages, "
            "which all do the same work. Use PipelinedStack in the model, or give the stacked "
            "parameters of a pipeline a rule, or choose 1."
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
