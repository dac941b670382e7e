"""What does a model say of the layout of its parameters? Flax's boxes, read and taken off."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

import flax.linen as nn
import flax.struct
import jax
from flax.linen.spmd import logical_to_mesh_axes
from jax.sharding import Mesh, PartitionSpec

from xtrainer.errors import ConfigError
from xtrainer.tree import path_str
from xtrainer.types import PyTree

LogicalRules: TypeAlias = Sequence[tuple[str, Any]]
"""Logical axis name to mesh axis, tuple of mesh axes or None."""


@dataclass(frozen=True)
class AxisNames:
    """What a model's metadata says of one parameter.

    Attributes:
        names: For each dimension an axis name, a tuple of names or None.
        logical: Whether the names are logical (``nn.with_logical_partitioning``) or those of mesh
            axes (``nn.with_partitioning``).
        rules: Rules that the model gave with the names, in place of the config's.
        stacked: Whether the parameter has one more axis before those named: the layers of a
            pipeline, which lie over its stages.
    """

    names: tuple[Any, ...]
    logical: bool
    rules: LogicalRules | None = None
    stacked: bool = False

    def flat_names(self) -> list[str]:
        """Returns the names of all dimensions."""
        return jax.tree.leaves(list(self.names))

    def spec(self, mesh: Mesh, rules: LogicalRules) -> PartitionSpec | None:
        """Returns the partition that the names ask for; None where they say nothing.

        Mesh axes stand for themselves. Every other name goes through the rules, of which the first
        whose mesh axes are still free is taken; a logical name without a rule leaves its dimension
        whole. Where there are no rules at all, logical names say nothing.

        Args:
            mesh: Whose axes a model may name outright.
            rules: The config's ``logical_axis_rules``.

        Raises:
            ValueError: If a logical name stands for two dimensions.
        """
        if not self.names:
            return None
        rules = _plain(self.rules or rules)
        if self.logical:
            return logical_to_mesh_axes(self.names, rules) if rules else None
        if all(name in mesh.axis_names for name in self.flat_names()):
            return PartitionSpec(*self.names)
        translated = logical_to_mesh_axes(self.names, rules)
        kept = zip(self.names, translated or (), strict=True)
        known = {name for name, _ in rules}
        return PartitionSpec(*(new if old in known else old for old, new in kept))

    def without_rule(self, rules: LogicalRules) -> list[str]:
        """Returns the logical names that no rule mentions."""
        known = {name for name, _ in self.rules or rules}
        return [name for name in self.flat_names() if name not in known] if self.logical else []


def read_annotations(params: PyTree) -> dict[str, AxisNames]:
    """Returns what the boxes of a tree of parameters say, by parameter path.

    Boxes are those of ``nn.with_partitioning`` and ``nn.with_logical_partitioning``; layers that
    ``nn.scan`` stacks have the name of the new axis in theirs (``metadata_params``). Those of
    ``nnx`` get such boxes from ``xtrainer.NNXModel``.

    Example:
        >>> read_annotations({"kernel": nn.Partitioned(1.0, ("fsdp", None)), "bias": 0.0})
        {'kernel': AxisNames(names=('fsdp', None), logical=False, rules=None, stacked=False)}
    """
    found = {}
    for path, box in jax.tree_util.tree_leaves_with_path(params, is_leaf=_is_box):
        stacked = isinstance(box, LayersBox)
        if stacked:
            box = box.value
            found[path_str(path)] = AxisNames((), False, None, True)
        if isinstance(box, nn.Partitioned):
            logical = isinstance(box, nn.LogicallyPartitioned)
            rules = getattr(box, "rules", None)
            names = tuple(box.names)
            found[path_str(path)] = AxisNames(
                names, logical, None if rules is None else _plain(rules), stacked
            )
    return found


class LayersBox(flax.struct.PyTreeNode, nn.meta.AxisMetadata):
    """Says of a parameter that its first axis is that of a pipeline's layers.

    Attributes:
        value: The stacked parameter; perhaps in a box that names the axes of one layer's.
    """

    value: Any

    def unbox(self) -> Any:
        """Returns the stacked parameter."""
        return self.value

    def replace_boxed(self, val: Any) -> "LayersBox":
        """Returns a box of another value."""
        return LayersBox(val)

    def add_axis(self, index: int, params: dict[Any, Any]) -> NoReturn:
        """Refuses to be stacked once more.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(
            "PipelinedStack: found inside of nn.scan or nn.vmap, which stack its parameters once "
            "more, expected it outside. Call it by itself."
        )

    remove_axis = add_axis


def box_layers(params: PyTree) -> PyTree:
    """Returns stacked parameters in boxes that say that the first axis is that of the layers.

    Example:
        >>> read_annotations(box_layers({"kernel": jax.numpy.ones((4, 2, 2))}))
        {'kernel': AxisNames(names=(), logical=False, rules=None, stacked=True)}
    """
    return jax.tree.map(LayersBox, params, is_leaf=_is_box)


def unbox(tree: PyTree) -> PyTree:
    """Returns the tree without boxes; unlike Flax's, it never constrains a layout itself."""

    def strip(box: Any) -> Any:
        if not _is_box(box):
            return box
        apart = box.value if isinstance(box, nn.Partitioned) else box.unbox()
        return unbox(apart)

    return jax.tree.map(strip, tree, is_leaf=_is_box)


def _is_box(x: Any) -> bool:
    return isinstance(x, nn.meta.AxisMetadata)


def _plain(rules: Any) -> LogicalRules:
    # From JSON and config files names come as lists.
    return tuple((name, tuple(axes) if isinstance(axes, list) else axes) for name, axes in rules)
