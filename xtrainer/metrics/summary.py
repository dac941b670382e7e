"""What are the parameters? A table of path, shape, dtype, layout and size."""

import io
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from xtrainer.tree import flatten_with_paths, num_bytes, num_elements
from xtrainer.types import PyTree


def parameter_table(params: PyTree) -> str:
    """Returns a table with one line per parameter and a total.

    Args:
        params: Arrays or ``ShapeDtypeStruct``s; the layout is shown where they have a sharding.
    """
    table = Table(box=box.SIMPLE, show_footer=True)
    table.add_column("parameter", footer="total", overflow="fold")
    table.add_column("shape")
    table.add_column("dtype")
    table.add_column("partition")
    table.add_column("elements", justify="right", footer=f"{num_elements(params):,}")
    table.add_column("bytes", justify="right", footer=f"{num_bytes(params):,}")
    for path, leaf in flatten_with_paths(params).items():
        size = int(np.prod(leaf.shape, dtype=np.int64))
        shape = "×".join(str(length) for length in leaf.shape) or "scalar"
        table.add_row(
            path, shape, str(leaf.dtype), _spec(leaf), f"{size:,}", f"{num_bytes(leaf):,}"
        )
    stream = io.StringIO()
    Console(file=stream, width=120, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()).strip("\n")


def _spec(leaf: Any) -> str:
    spec = getattr(getattr(leaf, "sharding", None), "spec", None)
    named = [str(axis) for axis in spec or () if axis is not None]
    return ", ".join(named) if named else "whole"
