"""Which parameters have a learning rate or a weight decay of their own? Groups, by patterns."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

from xtrainer.config import Config
from xtrainer.errors import ConfigError
from xtrainer.optim.masks import pattern_problems
from xtrainer.optim.schedules import SchedulerConfig
from xtrainer.tree import flatten_with_paths, map_with_paths, matches
from xtrainer.types import PyTree, Schedule

REST = "rest"
"""The group of the parameters that no other one names."""


@dataclass(frozen=True, kw_only=True)
class ParamGroupConfig(Config):
    """Parameters that move at a rate of their own.

    What is not said here is as in the :class:`OptimizerConfig`. Gradients are clipped all together.
    """

    name: str
    """In logs and tables."""
    params: tuple[str, ...]
    """Patterns of the paths of the parameters; one that an earlier group names stays in that."""
    scheduler: SchedulerConfig | None = None
    """The learning rate; None: that of the optimizer."""
    lr_factor: float = 1.0
    """What the learning rate is multiplied by."""
    weight_decay: float | None = None
    """In place of the optimizer's, whose patterns still choose what decays; None: the same."""

    def problems(self) -> list[str]:
        """Returns names, numbers and patterns that cannot make a group."""
        found = pattern_problems("params", self.params)
        if not self.params:
            found.append("params: found no pattern, expected one at least.")
        if not self.name or "/" in self.name or self.name == REST:
            found.append(
                f"name: found {self.name!r}, expected a name without '/' that is not {REST!r}, "
                "which stands for the parameters of no group."
            )
        if not (self.lr_factor > 0 and math.isfinite(self.lr_factor)):
            found.append(
                f"lr_factor: found {self.lr_factor}, expected a finite number > 0. "
                "OptimizerConfig.freeze keeps parameters as they are."
            )
        decay = self.weight_decay
        if decay is not None and not (decay >= 0 and math.isfinite(decay)):
            found.append(f"weight_decay: found {decay}, expected a finite number >= 0.")
        return found


Groups = Sequence[ParamGroupConfig]


def label_params(groups: Groups, tree: PyTree) -> PyTree:
    """Returns the name of the group of each leaf; the first that names it counts.

    Example:
        >>> head = ParamGroupConfig(name="head", params=("head/*",), lr_factor=10.0)
        >>> label_params([head], {"head": {"kernel": 1.0}, "embed": 2.0})
        {'embed': 'rest', 'head': {'kernel': 'head'}}
    """

    def label(path: str, _: object) -> str:
        names = (g.name for g in groups if any(matches(pattern, path) for pattern in g.params))
        return next(names, REST)

    return map_with_paths(label, tree)


def decays_of(groups: Groups, weight_decay: float) -> dict[str, float]:
    """Returns the weight decay of each group.

    Args:
        groups: The groups.
        weight_decay: Of the parameters of no group, and of groups that say nothing else.
    """
    own = {g.name: weight_decay if g.weight_decay is None else g.weight_decay for g in groups}
    return {REST: weight_decay, **own}


def scale_by_rates(groups: Groups, rates: Mapping[str, Schedule]) -> optax.GradientTransformation:
    """Returns what multiplies the updates of each group by minus its learning rate.

    The state is that of ``optax.scale_by_learning_rate`` with one schedule.

    Args:
        groups: The groups.
        rates: The learning rate of each, and of :data:`REST`, by the number of updates made.
    """

    def init(params: PyTree) -> PyTree:
        del params
        return optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32))

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        del params
        factors = {name: -rate(state.count) for name, rate in rates.items()}
        updates = jax.tree.map(
            lambda name, u: jnp.asarray(factors[name], u.dtype) * u,
            label_params(groups, updates),
            updates,
        )
        return updates, optax.ScaleByScheduleState(optax.safe_increment(state.count))

    return optax.GradientTransformation(init, update)


def decay_groups(
    groups: Groups, weight_decay: float, mask: Callable[[PyTree], PyTree]
) -> optax.GradientTransformation:
    """Returns the weight decay of groups, for updates that their learning rates have yet to scale.

    The state is that of the weight decay without groups.

    Args:
        groups: The groups.
        weight_decay: Of the parameters of no group.
        mask: From a tree to a tree of bools: what decays.
    """
    decays = decays_of(groups, weight_decay)

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        labels = label_params(groups, updates)

        def decay(chosen: bool, name: str, u: jax.Array, p: jax.Array) -> jax.Array:
            return u + decays[name] * p if chosen and decays[name] else u

        return jax.tree.map(decay, mask(updates), labels, updates, params), state

    return optax.GradientTransformation(optax.add_decayed_weights(weight_decay, mask).init, update)


def part_groups(
    groups: Groups, parts: Mapping[str, Mapping[str, optax.GradientTransformation]]
) -> list[tuple[str, optax.GradientTransformation]]:
    """Returns named parts of one optimizer, each made of those of the groups' optimizers.

    Args:
        groups: The groups.
        parts: By group, and for :data:`REST`: transformations by name, the same names everywhere.
    """
    label = lambda tree: label_params(groups, tree)  # noqa: E731
    names = list(parts[REST])
    return [
        (name, optax.partition({group: own[name] for group, own in parts.items()}, label))
        for name in names
    ]


def group_problems(optimizer: str, groups: Groups) -> list[str]:
    """Returns names that several groups have, and that the optimizer cannot move groups apart.

    Args:
        optimizer: Its name.
        groups: The groups.
    """
    names = [group.name for group in groups]
    twice = sorted({name for name in names if names.count(name) > 1})
    found = [f"groups: found several named {name!r}, expected a name for each." for name in twice]
    if groups and optimizer in ("lbfgs", "optax.lbfgs"):
        found.append(f"groups: found {names} with {optimizer}, whose one step moves all together.")
    return found


def check_groups(groups: Groups, frozen: Sequence[str], params: PyTree) -> None:
    """Raises for groups that cannot be meant.

    Args:
        groups: The groups.
        frozen: Patterns of the parameters that do not move.
        params: The parameters.

    Raises:
        ConfigError: For a pattern that names no parameter, and for a group without one that it
            could move.
    """
    paths = list(flatten_with_paths(params))
    labels = flatten_with_paths(label_params(groups, params))
    found = []
    for group in groups:
        unmatched = [p for p in group.params if not any(matches(p, path) for path in paths)]
        if unmatched:
            found.append(
                f"optimizer.groups: the patterns {unmatched} of {group.name!r} name no parameter, "
                f"expected paths like {paths[:3]}."
            )
            continue
        own = [path for path, name in labels.items() if name == group.name]
        moving = [path for path in own if not any(matches(p, path) for p in frozen)]
        if not moving:
            why = "all frozen" if own else "all in groups before it"
            found.append(
                f"optimizer.groups: the parameters that {group.name!r} names are {why}, expected "
                "some that it moves. Change its patterns, or leave it out."
            )
    if found:
        raise ConfigError(found)
