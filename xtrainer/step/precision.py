"""In which dtype are parameters kept, and in which is the model computed?"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from xtrainer.config import Config
from xtrainer.errors import did_you_mean
from xtrainer.types import PyTree

DTYPES = ("float32", "bfloat16", "float16")


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

    @property
    def casts(self) -> bool:
        """Whether applying the model needs any cast."""
        return {self.param_dtype, self.compute_dtype, self.output_dtype} != {"float32"}

    def problems(self) -> list[str]:
        """Returns dtypes that do not exist."""
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
