"""How do activations stay spread over the batch axes?"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import NamedSharding, PartitionSpec

from xtrainer.parallel.placement import BatchLayout
from xtrainer.types import PyTree

_BATCH = jax.make_user_context(None)
"""``(layout, rows)`` of the step being traced; a part of the keys of JAX's caches, so that what was
traced for one mesh is not used for another."""


@contextmanager
def constrain_module_outputs(layout: BatchLayout | None, rows: int) -> Iterator[None]:
    """Keeps every Linen module output with ``rows`` leading rows spread over the batch axes.

    Sharded parameters alone let the partitioner choose layouts of activations that cost several
    times the memory (GSPMD, Xu et al., 2021, https://arxiv.org/abs/2105.04663, propagates from what
    is annotated). Reaches inside ``nn.scan`` and ``nn.remat``. Other models call
    :func:`constrain_batch`, which knows inside of this context what to do.

    Args:
        layout: Mesh and batch axes; nothing is done where None or where one shard holds all.
        rows: Rows of the (micro-)batch.
    """
    if layout is None or layout.num_shards == 1 or not layout.divides(rows):
        with _BATCH(None):
            yield
        return

    def constrain(x: Any) -> Any:
        batch = _BATCH.value  # another one inside of part_of_batch
        if batch is None or getattr(x, "ndim", 0) < 2 or x.shape[0] != batch[1]:
            return x
        return _spread(x, layout)

    def interceptor(next_fn: Any, args: Any, kwargs: Any, context: Any) -> Any:
        outputs = next_fn(*args, **kwargs)
        return jax.tree.map(constrain, outputs) if context.method_name == "__call__" else outputs

    with _BATCH((layout, rows)), nn.intercept_methods(interceptor):
        yield


@contextmanager
def part_of_batch(rows: int) -> Iterator[None]:
    """Makes activations of ``rows`` rows those that are kept spread over the batch axes."""
    batch = _BATCH.value
    with _BATCH(batch and ((batch[0], rows) if batch[0].divides(rows) else None)):
        yield


def constrain_batch(tree: PyTree) -> PyTree:
    """Returns the arrays, each spread over the devices that share the rows of a batch.

    For models that are not of Flax Linen (``nnx``, plain JAX): called on the activations between
    layers, it keeps sharded parameters from pulling the rows of a batch together. It changes where
    an array lives, never a value. In the ``apply_fn`` of a loss it knows the mesh and the rows of
    the (micro-)batch; elsewhere, and on one device, it gives back what it was given.

    Args:
        tree: Arrays whose first axis is the batch, or the batch merged with axes that follow it
            (``[rows * length, channels]``); others are left as they are.

    Example:
        >>> constrain_batch({"hidden": jax.numpy.ones((4, 2))})["hidden"].shape
        (4, 2)
    """
    if _BATCH.value is None:
        return tree
    layout, rows = _BATCH.value

    def constrain(x: Any) -> Any:
        of_batch = getattr(x, "ndim", 0) > 0 and x.shape[0] > 0 and x.shape[0] % rows == 0
        return _spread(x, layout) if of_batch else x

    return jax.tree.map(constrain, tree)


def _spread(x: jax.Array, layout: BatchLayout) -> jax.Array:
    spec = PartitionSpec(layout.axes, *(PartitionSpec.UNCONSTRAINED,) * (x.ndim - 1))
    return jax.lax.with_sharding_constraint(x, NamedSharding(layout.mesh, spec))
