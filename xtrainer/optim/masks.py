"""Which parameters does a rule act on? Masks from patterns of parameter paths."""

import re
from collections.abc import Callable, Sequence
from typing import Protocol

from xtrainer.tree import flatten_with_paths, map_with_paths, matches
from xtrainer.types import PyTree

Patterns = Sequence[str] | None


class DecayPatterns(Protocol):
    """The fields of a config that choose the parameters of the weight decay."""

    @property
    def weight_decay_include(self) -> tuple[str, ...] | None:
        """Patterns of the parameters that decay; None: all."""
        ...

    @property
    def weight_decay_exclude(self) -> tuple[str, ...] | None:
        """Patterns of the parameters that do not decay."""
        ...


def path_mask(include: Patterns, exclude: Patterns) -> Callable[[PyTree], PyTree]:
    """Returns a function from a tree to a tree of bools: which leaves are chosen.

    Args:
        include: A leaf is chosen if one of these names its path; None: every leaf is.
        exclude: A leaf that one of these names is not chosen, even if it is included.

    Example:
        >>> path_mask(None, ["bias|scale"])({"dense": {"kernel": 1.0, "bias": 2.0}})
        {'dense': {'bias': False, 'kernel': True}}
    """

    def chosen(path: str, _: object) -> bool:
        included = include is None or any(matches(pattern, path) for pattern in include)
        return included and not any(matches(pattern, path) for pattern in exclude or ())

    return lambda tree: map_with_paths(chosen, tree)


def unmatched_patterns(config: DecayPatterns, params: PyTree) -> list[str]:
    """Returns the weight decay patterns of a config that name no parameter: likely typing mistakes.

    Example:
        >>> from xtrainer.optim import OptimizerConfig
        >>> config = OptimizerConfig(weight_decay=0.1, weight_decay_exclude=("bias", "scael"))
        >>> unmatched_patterns(config, {"norm": {"scale": 1.0, "bias": 0.0}})
        ['scael']
    """
    paths = list(flatten_with_paths(params))
    patterns = (*(config.weight_decay_include or ()), *(config.weight_decay_exclude or ()))
    return [pattern for pattern in patterns if not any(matches(pattern, path) for path in paths)]


def pattern_problems(name: str, patterns: Patterns) -> list[str]:
    """Returns the patterns that are neither a glob nor a regular expression."""
    found = []
    for pattern in patterns or ():
        try:
            matches(pattern, "")
        except re.error as error:
            found.append(f"{name}: found {pattern!r}, expected a regular expression ({error}).")
    return found
