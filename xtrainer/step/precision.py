"""In which dtype are parameters kept, and in which is the model computed?"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from xtrainer.config import Config
from xtrainer.errors import did_you_mean
from xtrainer.types import PyTree

DTYPES = ("float32", "bfloat16", "float16")
FIRST_EXPONENT, MAX_EXPONENT = 15, 24
"""Of a dynamic scale, a power of two that is never below one."""


@dataclass(frozen=True, kw_only=True)
class PrecisionConfig(Config):
    """Mixed precision: parameters are kept in one dtype and cast once per step to another.

    Norms, losses, gradient and metric sums are float32 whatever is chosen here. Micikevicius et
    al., Mixed Precision Training, 2018 (https://arxiv.org/abs/1710.03740).
    """

    param_dtype: str = "float32"
    """Dtype of the parameters in the state."""
    compute_dtype: str = "float32"
    """Dtype of parameters and floating inputs when the model is applied."""
    output_dtype: str = "float32"
    """Dtype of the floating outputs that the loss function sees."""
    loss_scale: float | Literal["dynamic"] | None = None
    """By what the mean loss is multiplied before it is differentiated, for ``compute_dtype``
    float16, in which small gradients are zero; None: by nothing. Gradients are divided by it in
    float32 before all else. ``"dynamic"`` begins with 2**15, halves it where gradients overflow and
    doubles it after ``loss_scale_growth_steps`` good steps, between 1 and 2**24. A step that has
    overflowed is skipped, and is no failure for ``nonfinite_policy`` unless the scale was 1. A
    dynamic scale is part of checkpoints: a run with one cannot go on from a checkpoint without."""
    loss_scale_growth_steps: int = 2000
    """Good steps after which a dynamic scale is doubled."""

    @property
    def casts(self) -> bool:
        """Whether applying the model needs any cast."""
        return {self.param_dtype, self.compute_dtype, self.output_dtype} != {"float32"}

    @property
    def first_exponent(self) -> int | None:
        """The exponent that a dynamic scale begins with; None where there is none."""
        return FIRST_EXPONENT if self.loss_scale == "dynamic" else None

    def problems(self) -> list[str]:
        """Returns dtypes that do not exist, and scales that cannot be."""
        return self._dtype_problems() + self._scale_problems()

    def _scale_problems(self) -> list[str]:
        found, scale, least = [], self.loss_scale, 2.0**-MAX_EXPONENT
        is_number = isinstance(scale, int | float) and not isinstance(scale, bool)
        if scale not in (None, "dynamic") and not (is_number and least <= scale <= 1 / least):
            found.append(
                f"loss_scale: found {scale!r}, expected 'dynamic', None, or a number from "
                f"2**-{MAX_EXPONENT} to 2**{MAX_EXPONENT}, best a power of two."
            )
        if self.loss_scale_growth_steps < 1:
            steps = self.loss_scale_growth_steps
            found.append(f"loss_scale_growth_steps: found {steps}, expected a number >= 1.")
        return found

    def _dtype_problems(self) -> list[str]:
        return [
            f"{name}: found {value!r}. {did_you_mean(value, DTYPES)}"
            for name in ("param_dtype", "compute_dtype", "output_dtype")
            if (value := getattr(self, name)) not in DTYPES
        ]


def cast_floating(tree: PyTree, dtype: str) -> PyTree:
    """Returns the tree with its floating arrays in ``dtype``; all else as it was.

    Example:
        >>> cast_floating({"x": jnp.ones(2), "i": jnp.arange(2)}, "bfloat16")["x"].dtype
        dtype(bfloat16)
    """

    def cast(leaf: object) -> object:
        kind = getattr(leaf, "dtype", None)
        if kind is not None and jnp.issubdtype(kind, jnp.floating):
            return jnp.asarray(leaf, dtype)
        return leaf

    return jax.tree.map(cast, tree)
