"""Which parameters does a rule act on? Masks from patterns of parameter paths."""

import logging
import re
from collections.abc import Callable, Sequence
from typing import Protocol

from xtrainer.errors import ConfigError
from xtrainer.tree import flatten_with_paths, map_with_paths, matches
from xtrainer.types import PyTree

_LOG = logging.getLogger(__name__)

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
    patterns = (*(config.weight_decay_include or ()), *(config.weight_decay_exclude or ()))
    return _unmatched(patterns, params)


def warn_of_patterns(config: DecayPatterns) -> Callable[[PyTree], None]:
    """Returns what warns, once for each, of the patterns that :func:`unmatched_patterns` finds."""
    warned: set[str] = set()  # a state is made several times: for its shapes, then for its values

    def check(params: PyTree) -> None:
        new = [name for name in unmatched_patterns(config, params) if name not in warned]
        warned.update(new)
        if new:
            _LOG.warning(
                "These weight decay patterns name no parameter: %s. Paths look like %r.",
                ", ".join(map(repr, new)),
                next(iter(flatten_with_paths(params)), ""),
            )

    return check


def check_frozen(patterns: Sequence[str], params: PyTree) -> None:
    """Raises for patterns of frozen parameters that cannot be meant.

    Raises:
        ConfigError: For a pattern that names no parameter, and if no parameter is left to train.
    """
    paths = list(flatten_with_paths(params))
    unmatched = _unmatched(patterns, params)
    if unmatched:
        raise ConfigError(
            f"optimizer.freeze: the patterns {unmatched} name no parameter, expected paths like "
            f"{paths[:3]}."
        )
    if all(any(matches(pattern, path) for pattern in patterns) for path in paths):
        raise ConfigError(
            f"optimizer.freeze: {list(patterns)} name all {len(paths)} parameters, expected some "
            "that are trained."
        )


def _unmatched(patterns: Sequence[str], params: PyTree) -> list[str]:
    paths = list(flatten_with_paths(params))
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
