"""What does the size of the parameters add to the loss? A penalty, l1, l2 or both."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from xtrainer.config import Config
from xtrainer.errors import ConfigError
from xtrainer.optim.masks import path_mask, pattern_problems
from xtrainer.tree import flatten_with_paths, matches
from xtrainer.types import PyTree

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RegularizationConfig(Config):
    """What training adds to the mean loss so that parameters stay small.

    ``l1`` is the sum of the absolute values of the parameters, ``l2`` that of their squares (no
    half of it), each times its strength. It is added once per step, in float32 and whatever the
    number of micro-batches; the row of training logs it as ``regularization`` and within ``loss``.
    The loss of an evaluation is that of the data alone. Unlike weight decay it is part of the
    gradient, so that clipping and the averages of the optimizer see it. A batch without any weight
    moves no parameter by it.

    Example:
        >>> from xtrainer.optim import OptimizerConfig
        >>> config = RegularizationConfig(type="l1_l2", strength=1e-4, exclude=("bias",))
        >>> OptimizerConfig(regularization=config).problems()
        []
    """

    type: Literal["l1", "l2", "l1_l2"] = "l2"
    """``l1``, ``l2``, or ``l1_l2`` for the sum of both."""
    strength: float = 0.0
    """What the sum is multiplied by."""
    l1_strength: float | None = None
    """That of the first part of ``l1_l2``; None: ``strength``."""
    l2_strength: float | None = None
    """That of the second part of ``l1_l2``; None: ``strength``."""
    include: tuple[str, ...] | None = None
    """Patterns of the paths of the parameters that count; None: all that are not frozen."""
    exclude: tuple[str, ...] | None = None
    """Patterns of the paths of parameters that do not count, even if included."""

    @property
    def strengths(self) -> tuple[float, float]:
        """What the absolute values and the squares are multiplied by; 0 for what does not count."""
        if self.type == "l1_l2":
            given = (self.l1_strength, self.l2_strength)
            first, second = (self.strength if x is None else x for x in given)
            return first, second
        return (self.strength, 0.0) if self.type == "l1" else (0.0, self.strength)

    def problems(self) -> list[str]:
        """Returns strengths and patterns that cannot be."""
        found = []
        for name in ("strength", "l1_strength", "l2_strength"):
            value = getattr(self, name)
            if value is None:
                continue
            if not (value >= 0 and math.isfinite(value)):
                found.append(f"{name}: found {value}, expected a finite number >= 0.")
            if name != "strength" and self.type in ("l1", "l2"):
                found.append(
                    f"{name}: found {value} with type={self.type!r}, which reads strength. "
                    "Remove it, or set type='l1_l2'."
                )
        return found + [
            problem
            for name in ("include", "exclude")
            for problem in pattern_problems(name, getattr(self, name))
        ]


def regularization_fn(config: RegularizationConfig) -> Callable[[PyTree], jax.Array]:
    """Returns a function from parameters to what is added to the loss, float32 ``()``.

    The derivative of an absolute value at 0 is 0.

    Args:
        config: Its patterns choose by the paths of the parameters.

    Example:
        >>> penalty = regularization_fn(RegularizationConfig(strength=0.5, exclude=("bias",)))
        >>> float(penalty({"kernel": jnp.array([3.0, -4.0]), "bias": jnp.ones(2)}))
        12.5
    """
    by_value, by_square = config.strengths
    chosen = path_mask(config.include, config.exclude)

    def penalty(params: PyTree) -> jax.Array:
        total = jnp.zeros((), jnp.float32)
        mask = jax.tree.leaves(chosen(params))
        for counts, leaf in zip(mask, jax.tree.leaves(params), strict=True):
            if not counts:
                continue
            size = jnp.abs(leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)))
            if by_value:  # selected, since JAX differentiates the absolute value of 0 to 1
                total += by_value * jnp.sum(jnp.where(leaf == 0, 0.0, size))
            if by_square:
                total += by_square * jnp.sum(jnp.square(size))
        return total

    return penalty


def make_pattern_check(
    config: RegularizationConfig, freeze: tuple[str, ...]
) -> Callable[[PyTree], None]:
    """Returns a function that looks whether the patterns mean some of the parameters it is given.

    It warns, once, of a pattern that names no parameter.

    Args:
        config: The patterns.
        freeze: Patterns of frozen parameters, which do not count.

    Raises:
        ConfigError: From that function, if no parameter counts.
    """
    warned: set[str] = set()  # a state is made several times: for its shapes, then for its values

    def check(params: PyTree) -> None:
        paths = list(flatten_with_paths(params))
        excluded = (*(config.exclude or ()), *freeze)
        if not any(jax.tree.leaves(path_mask(config.include, excluded)(params))):
            raise ConfigError(
                f"optimizer.regularization: found include={config.include}, exclude="
                f"{config.exclude} and freeze={freeze}, which leave no parameter; expected some "
                f"that count. Paths look like {paths[:3]}."
            )
        patterns = {*(config.include or ()), *(config.exclude or ())} - warned
        new = sorted(p for p in patterns if not any(matches(p, path) for path in paths))
        warned.update(new)
        if new:
            logger.warning(
                "These regularization patterns name no parameter: %s. Paths look like %r.",
                ", ".join(map(repr, new)),
                next(iter(paths), ""),
            )

    return check
