"""How do activations stay spread over the batch axes?"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import NamedSharding, PartitionSpec

from xtrainer.parallel.placement import BatchLayout


@contextmanager
def constrain_module_outputs(layout: BatchLayout | None, rows: int) -> Iterator[None]:
    """Keeps every Linen module output with ``rows`` leading rows spread over the batch axes.

    Sharded parameters alone let the partitioner choose layouts of activations that cost several
    times the memory (GSPMD, Xu et al., 2021, https://arxiv.org/abs/2105.04663, propagates from what
    is annotated). Reaches inside ``nn.scan`` and ``nn.remat``; other models are left alone.

    Args:
        layout: Mesh and batch axes; nothing is done where None or where one shard holds all.
        rows: Rows of the (micro-)batch.
    """
    if layout is None or layout.num_shards == 1 or not layout.divides(rows):
        yield
        return

    def constrain(x: Any) -> Any:
        if getattr(x, "ndim", 0) < 2 or x.shape[0] != rows:
            return x
        spec = PartitionSpec(layout.axes, *(PartitionSpec.UNCONSTRAINED,) * (x.ndim - 1))
        return jax.lax.with_sharding_constraint(x, NamedSharding(layout.mesh, spec))

    def interceptor(next_fn: Any, args: Any, kwargs: Any, context: Any) -> Any:
        outputs = next_fn(*args, **kwargs)
        return jax.tree.map(constrain, outputs) if context.method_name == "__call__" else outputs

    with nn.intercept_methods(interceptor):
        yield
