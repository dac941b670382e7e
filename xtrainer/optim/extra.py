"""What does an optimizer see of a step beside gradients and parameters? Value and loss function."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from xtrainer.types import PyTree


def without_frozen(
    extra: dict[str, Any], mask: Callable[[PyTree], PyTree], params: PyTree
) -> dict[str, Any]:
    """Returns the extra arguments for a transformation that does not see the frozen parameters.

    Args:
        extra: Of them ``grad`` loses its frozen leaves, and ``value_fn`` is called with these as
            they are in ``params``.
        mask: From a tree to a tree of bools: which leaves are frozen.
        params: The whole tree.

    Example:
        >>> params = {"head": 2.0, "embed": 3.0}
        >>> frozen = lambda tree: {"head": False, "embed": True}
        >>> extra = {"value_fn": lambda p: p["head"] * p["embed"]}
        >>> inner = without_frozen(extra, frozen, params)["value_fn"]
        >>> inner({"head": 5.0, "embed": optax.MaskedNode()})
        15.0
    """
    changed = dict(extra)
    if (grad := extra.get("grad")) is not None:
        changed["grad"] = jax.tree.map(
            lambda frozen, g: optax.MaskedNode() if frozen else g, mask(grad), grad
        )
    if (value_fn := extra.get("value_fn")) is not None:

        def of_trained(trained: PyTree) -> jax.Array:
            leaves = iter(jax.tree.leaves(trained))
            return value_fn(
                jax.tree.map(lambda frozen, p: p if frozen else next(leaves), mask(params), params)
            )

        changed["value_fn"] = of_trained
    return changed


def trial_extra(params: PyTree) -> dict[str, Any]:
    """Returns extra arguments as a step gives them, for a trial with ``params`` as the gradient."""

    def value_fn(params: PyTree) -> jax.Array:
        return sum((jnp.sum(leaf) for leaf in jax.tree.leaves(params)), jnp.zeros(()))

    return {"value": value_fn(params), "grad": params, "value_fn": value_fn}


def trial_params() -> PyTree:
    """Returns the shapes of a few parameters, for a trial of an optimizer.

    Shapes only: a trial that put arrays on a device would choose the backend too early.
    """
    shapes = {"kernel": (4, 4), "bias": (4,)}
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
