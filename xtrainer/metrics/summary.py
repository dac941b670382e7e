"""What are the parameters? A table of path, shape, dtype, layout, size and what moves them."""

import io
from typing import Any

import jax
from rich import box
from rich.console import Console
from rich.table import Table

from xtrainer.tree import device_bytes, flatten_with_paths, num_bytes, num_elements
from xtrainer.types import PyTree

UNKNOWN = "–"


def parameter_table(
    params: PyTree,
    decayed: PyTree | None = None,
    frozen: PyTree | None = None,
    groups: PyTree | None = None,
) -> str:
    """Returns a table with one line per parameter and a total, 120 characters wide at most.

    Its bytes are those of the whole array, and those that one device holds.

    Args:
        params: Arrays or ``ShapeDtypeStruct``s; the layout is shown where they have a sharding.
        decayed: A tree of bools: whether weight decay acts; None: that is not known.
        frozen: A tree of bools: whether the parameter stays as it is; None: that is not known.
        groups: A tree of names of groups, shown in a column of their own; None: there are none.

    Example:
        >>> params = {"head": {"kernel": jax.ShapeDtypeStruct((8, 4), "float32")}}
        >>> print(parameter_table(params).splitlines()[2].strip())
        head/kernel  8×4    float32  whole        32    128         128  –      –
    """
    table = Table(box=box.SIMPLE, show_footer=True, padding=(0, 1, 0, 0))
    leaves = flatten_with_paths(params)
    footers = {
        "parameter": "total",
        "elements": f"{num_elements(params):,}",
        "bytes": f"{num_bytes(params):,}",
        "per device": f"{device_bytes(params):,}",
        "decay": _count(decayed),
        "frozen": _count(frozen),
    }
    names = ("parameter", "shape", "dtype", "spec", "elements", "bytes", "per device")
    labels = {} if groups is None else flatten_with_paths(groups)
    for name in (*names, "decay", "frozen", *(["group"] if labels else [])):
        right = name in ("elements", "bytes", "per device")
        # Only a path or a spec may take several lines: numbers in pieces cannot be read.
        table.add_column(
            name,
            footer=footers.get(name, ""),
            justify="right" if right else "left",
            overflow="fold",
            no_wrap=name not in ("parameter", "spec", "group"),
            max_width=18 if name == "spec" else None,
        )
    decays, stills = (_answers(tree, list(leaves)) for tree in (decayed, frozen))
    for path, leaf in leaves.items():
        shape = "×".join(str(length) for length in leaf.shape) or "scalar"
        sizes = (num_elements(leaf), num_bytes(leaf), device_bytes(leaf))
        numbers = (f"{size:,}" for size in sizes)
        cells = (shape, str(leaf.dtype), spec_text(leaf), *numbers, decays[path], stills[path])
        table.add_row(path, *cells, *([labels[path]] if labels else []))
    stream = io.StringIO()
    # In a notebook rich would show the table itself, and write nothing to the stream.
    Console(file=stream, width=120, color_system=None, force_jupyter=False).print(table)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()).strip("\n")


def spec_text(leaf: Any) -> str:
    """Returns which mesh axes each dimension of an array is spread over, for a table.

    Example:
        >>> spec_text(jax.ShapeDtypeStruct((8, 4), "float32"))
        'whole'
    """
    spec = getattr(getattr(leaf, "sharding", None), "spec", None) or ()
    if all(axis is None for axis in spec):
        return "whole"
    shown = ("·" if axis is None else "+".join(_names(axis)) for axis in spec)
    return ", ".join(shown)


def _names(axis: Any) -> tuple[str, ...]:
    return tuple(map(str, axis)) if isinstance(axis, tuple) else (str(axis),)


def _answers(tree: PyTree | None, paths: list[str]) -> dict[str, str]:
    if tree is None:
        return dict.fromkeys(paths, UNKNOWN)
    return {path: "yes" if leaf else "no" for path, leaf in flatten_with_paths(tree).items()}


def _count(tree: PyTree | None) -> str:
    return UNKNOWN if tree is None else f"{sum(map(bool, jax.tree.leaves(tree)))} yes"
