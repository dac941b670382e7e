"""In which order do the devices hold the rows of a batch while a step computes?"""

import dataclasses

import jax
from jax.sharding import NamedSharding

from xtrainer.parallel import BatchLayout
from xtrainer.types import PyTree


def inner_layout(layout: BatchLayout | None) -> BatchLayout | None:
    """Returns the layout of activations: as that of the batch, or with the FSDP axis outermost.

    Where a matrix is spread over the FSDP and the tensor axis, XLA's partitioner groups the rows by
    the FSDP axis to multiply with it. Rows that are spread over (data, FSDP) are permuted for that,
    and some results are not permuted back: with jaxlib 0.10 a third of all layouts of three dense
    layers had wrong gradients, without a word. Rows in the order of the groups are never permuted.

    Args:
        layout: As :meth:`BatchLayout.of` gives it; None: one device.
    """
    if layout is None:
        return None
    shape = layout.mesh.shape
    batch_axes = [name for name in layout.axes if shape[name] > 1]
    others = [name for name in shape if shape[name] > 1 and name not in layout.axes]
    if len(batch_axes) < 2 or not others:
        return layout
    return dataclasses.replace(layout, axes=layout.axes[::-1])


def arrange_rows(tree: PyTree, layout: BatchLayout | None, inner: BatchLayout | None) -> PyTree:
    """Returns a batch with its rows where ``inner`` has them; every value stays as it is.

    Args:
        tree: Arrays whose first axis is the batch.
        layout: How the batch came.
        inner: Of :func:`inner_layout`.
    """
    rows = jax.tree.leaves(tree)[0].shape[0]
    if inner is None or inner is layout or not inner.divides(rows):
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(inner.mesh, inner.spec))
