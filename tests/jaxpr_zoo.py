"""Which operations are in a traced function, and within which others?"""

from collections.abc import Iterator
from typing import Any

import jax


def primitives(jaxpr: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yields each operation of a jaxpr below the names of those it is part of."""
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        path = (*above, equation.primitive.name)
        yield path
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                yield from primitives(inner, path)
