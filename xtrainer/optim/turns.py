"""How is each group of parameters moved by an optimizer of its own, and one group alone?"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from xtrainer.optim.groups import Groups, label_params
from xtrainer.optim.transforms import freeze
from xtrainer.types import PyTree


class TurnsState(NamedTuple):
    """The states of the optimizers of several groups.

    Attributes:
        inner: By the name of the group; ``rest`` is there where a parameter is of no group.
    """

    inner: dict[str, PyTree]


def in_turns(
    groups: Groups, optimizers: Mapping[str, optax.GradientTransformation]
) -> optax.GradientTransformationExtraArgs:
    """Returns one optimizer of several, each of which sees the parameters of its group alone.

    Moments, counts and clipped norms are those of the group. ``update(..., turn=NAME)`` moves that
    group: the updates of the others are 0, their state stays as it is, and no update is counted for
    them. Without ``turn`` all are moved.

    Args:
        groups: The groups.
        optimizers: By the name of the group, and for ``rest``, those of no group.

    Example:
        >>> from xtrainer.optim import REST, ParamGroupConfig
        >>> head = ParamGroupConfig(name="head", params=("head",))
        >>> both = in_turns([head], {"head": optax.sgd(1.0), REST: optax.sgd(0.1)})
        >>> params = {"embed": jnp.ones(()), "head": jnp.ones(())}
        >>> updates, _ = both.update(params, both.init(params), params, turn="head")
        >>> {name: float(update) for name, update in updates.items()}
        {'embed': 0.0, 'head': -1.0}
    """
    alone = {name: freeze(own, _others(groups, name)) for name, own in optimizers.items()}

    def init(params: PyTree) -> TurnsState:
        wanted = set(jax.tree.leaves(label_params(groups, params)))
        return TurnsState({n: own.init(params) for n, own in alone.items() if n in wanted})

    def update(
        updates: PyTree,
        state: TurnsState,
        params: PyTree = None,
        *,
        turn: str | None = None,
        **extra: Any,
    ) -> tuple[PyTree, TurnsState]:
        inner = dict(state.inner)
        moved = jax.tree.map(jnp.zeros_like, updates)
        for name in inner if turn is None else (turn,):
            part, inner[name] = alone[name].update(updates, inner[name], params, **extra)
            moved = part if turn is not None else jax.tree.map(jnp.add, moved, part)
        return moved, TurnsState(inner)

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def takes_turns(opt_state: PyTree) -> bool:
    """Says whether a state is that of an optimizer of :func:`in_turns`, whatever is around it."""
    is_turns = lambda x: isinstance(x, TurnsState)  # noqa: E731
    return any(map(is_turns, jax.tree.leaves(opt_state, is_leaf=is_turns)))


def turn_problems(wanted: bool, groups: Groups, ema_decay: float | None) -> list[str]:
    """Returns what cannot be together with optimizers that are moved one by one.

    Args:
        wanted: Whether the groups have optimizers of their own.
        groups: The groups.
        ema_decay: Of the average of the parameters.
    """
    if not wanted:
        return []
    found = []
    if not groups:
        found.append("in_turns: found True without groups, expected a group for each turn.")
    if ema_decay is not None:
        found.append(
            f"in_turns: found True with ema_decay={ema_decay}, which would count every turn of a "
            "step as a step. Leave one of them out."
        )
    return found


def _others(groups: Groups, name: str) -> Callable[[PyTree], PyTree]:
    return lambda tree: jax.tree.map(lambda label: label != name, label_params(groups, tree))
