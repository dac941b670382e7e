"""In which order are many small kernels computed? On a CPU one after the other.

XLA's CPU runtime hands kernels that become ready at the same moment to other threads. For kernels
of a few thousand numbers that costs more than they do: a step of a tiny network took 136 us with a
guard whose selections were all ready at once, and 67 us with the same ones in line.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from xtrainer.metrics import global_norm
from xtrainer.types import PyTree

_SMALL = 2**15
"""Numbers of an array whose kernel costs less than handing it to another thread."""
_TINY = 2**12
"""Numbers of an array that is joined with others: 200 kernels of a norm of 100 arrays become 4."""
_GROUP = 64


class Line:
    """Makes small computations wait for one another, without changing what they give.

    Each takes in a number of the one before, of which XLA does not know that it changes nothing.

    Args:
        wanted: Otherwise nothing waits.
    """

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted
        self._last: jax.Array | None = None  # float32 (), of the one that was put in last

    def hold(self, tree: PyTree) -> PyTree:
        """Returns a tree whose leaves are computed once, not in each thing made of them.

        An optimizer's update within the reduction that checks it would be computed number by
        number, root and division included, and once more where it is added to the parameters. XLA
        uses no more memory for it on a CPU.
        """
        return jax.tree.map(jax.lax.optimization_barrier, tree) if self._wanted else tree

    def gate(self, condition: jax.Array) -> jax.Array:
        """Returns a condition, bool ``()``, that is known after what was put in last."""
        if self._last is None:
            return condition
        return condition & ~(self._last > jnp.inf)

    def put(self, value: jax.Array) -> None:
        """Lets what comes next wait for a value; for one that is not small nothing waits."""
        if self._wanted and 0 < value.size <= _SMALL and jnp.issubdtype(value.dtype, jnp.floating):
            self._last = value.ravel()[0].astype(jnp.float32)

    def select(self, accept: jax.Array, new: PyTree, old: PyTree) -> PyTree:
        """Returns the leaves of ``new`` where ``accept``, bool ``()``, is true, else of ``old``."""

        def choose(first: jax.Array, second: jax.Array) -> jax.Array:
            chosen = jnp.where(self.gate(accept), first, second)
            self.put(chosen)
            return chosen

        return jax.tree.map(choose, new, old)

    def norm(self, tree: PyTree, checked: PyTree | None = None) -> jax.Array:
        """Returns the Euclidean norm of all leaves, float32 ``()``.

        Args:
            tree: Arrays.
            checked: A tree of the same leaves; where one of its numbers is not finite the norm is
                not either. One reduction over each leaf tells both.
        """
        if not self._wanted and checked is None:
            return global_norm(tree)
        leaves = jax.tree.leaves(tree)
        others = [None] * len(leaves) if checked is None else jax.tree.leaves(checked)
        total = jnp.zeros((), jnp.float32)
        for leaf, other in self._joined(leaves, others):
            squares = jnp.square(jnp.abs(leaf).astype(jnp.float32))
            if other is not None:
                other = jnp.abs(other).astype(jnp.float32)
                squares += other - other
            if self._last is not None and leaf.size <= _SMALL:
                squares = jnp.where(self._last > jnp.inf, 0.0, squares)
            part = jnp.sum(squares)
            self.put(part)
            total += part
        return jnp.sqrt(total)

    def _joined(self, leaves: list[Any], others: list[Any]) -> Iterator[tuple[Any, Any]]:
        """Gives pairs of leaves; tiny ones of a dtype are put into one array, to be one kernel."""
        groups: dict[Any, list[tuple[Any, Any]]] = {}
        for leaf, other in zip(leaves, others, strict=True):
            if not self._wanted or leaf.size > _TINY:
                yield leaf, other
                continue
            group = groups.setdefault((leaf.dtype, None if other is None else other.dtype), [])
            group.append((leaf, other))
            if len(group) == _GROUP:
                yield self._join(group)
                group.clear()
        yield from (self._join(group) for group in groups.values() if group)

    def _join(self, group: list[tuple[Any, Any]]) -> tuple[Any, Any]:
        if len(group) == 1:
            return group[0]
        first, second = zip(*group, strict=True)
        if self._last is not None:  # else it is put together beside what is under way
            first = (
                jnp.where(self._last > jnp.inf, jnp.zeros_like(first[0]), first[0]),
                *first[1:],
            )
        # Held: computed within a reduction, each number would ask which array it is from.
        join = lambda arrays: self.hold(jnp.concatenate([x.ravel() for x in arrays]))  # noqa: E731
        return join(first), None if second[0] is None else join(second)
