"""How are few parameters trained beside many frozen ones? Adapters of low rank, in Flax Linen.

Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021
(https://arxiv.org/abs/2106.09685).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.model import Transformer
from xtrainer.registry import register_model

BASE = "base"
"""What the frozen model is called within the adapted one."""
_BETWEEN = "-"  # stands in the name of an adapter for the slash of the path of its layer


class Adapter(nn.Module):
    """What is added to the outputs of a Dense layer; nothing before training.

    Args:
        features: Of the layer.
        rank: Numbers between the two matrices.
        scale: What their product is multiplied by.
    """

    features: int
    rank: int
    scale: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns an array of the shape of the layer's outputs."""
        init = nn.initializers.normal(stddev=x.shape[-1] ** -0.5)
        down = self.param("down", init, (x.shape[-1], self.rank)).astype(x.dtype)
        zeros = nn.initializers.zeros_init()
        up = self.param("up", zeros, (self.rank, self.features)).astype(x.dtype)
        return (x @ down) @ up * self.scale


def adapted(
    owner: nn.Module, rank: int, scale: float, targets: Sequence[str]
) -> AbstractContextManager[None]:
    """Returns a context in which Dense layers are called with their adapters.

    Args:
        owner: A module under way, in whose compact method the layers are called; it has the
            adapters, and as ``base`` the model they are for.
        rank: Of the adapters; 0: there are none.
        scale: What each is multiplied by.
        targets: Regular expressions that are searched in the path of a layer, as
            ``block_0/attention/qkv``.
    """

    def call(next_fun: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        result, layer = next_fun(*args, **kwargs), context.module
        if not rank or not isinstance(layer, nn.Dense) or context.method_name != "__call__":
            return result
        path = layer.path[len(owner.path) + 1 :]
        if not any(re.search(target, "/".join(path)) for target in targets):
            return result
        adapter = Adapter(layer.features, rank, scale, parent=owner, name=_BETWEEN.join(path))
        return result + adapter(args[0])

    return nn.intercept_methods(call)


@register_model("lora_byte_lm")
class LoraTransformer(nn.Module):
    """A :class:`lm.model.Transformer`, whose parameters are called ``base``, with adapters.

    Args:
        base: Arguments of the transformer.
        rank: Of the adapters; 0: there are none.
        alpha: The product of an adapter's matrices is multiplied by ``alpha / rank``.
        targets: Which layers have one, see :func:`adapted`.
    """

    base: Mapping[str, Any]
    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("qkv$", "out$", "up$", "down$", "head$")

    @property
    def scale(self) -> float:
        """What an adapter is multiplied by."""
        return self.alpha / max(self.rank, 1)

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool = False) -> jax.Array:
        """Returns float32 logits ``[batch, length, vocab_size]``."""
        base = Transformer(**self.base, name=BASE)
        with adapted(self, self.rank, self.scale, self.targets):
            return base(tokens, train)


def merge(params: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """Returns the parameters of the base with the adapters added to its kernels.

    Args:
        params: Of an adapted model.
        scale: What an adapter is multiplied by.

    Example:
        >>> kernel, adapter = jnp.eye(2), {"down": jnp.ones((2, 1)), "up": jnp.ones((1, 2))}
        >>> params = {"base": {"block": {"up": {"kernel": kernel}}}, "block-up": adapter}
        >>> merge(params, 0.5)["block"]["up"]["kernel"].tolist()
        [[1.5, 0.5], [0.5, 1.5]]
    """
    merged = jax.tree.map(jnp.asarray, dict(params[BASE]))  # new dictionaries, the same arrays
    for name, adapter in params.items():
        if name == BASE:
            continue
        layer = merged
        for part in name.split(_BETWEEN):
            layer = layer[part]
        added = scale * adapter["down"] @ adapter["up"]
        layer["kernel"] = layer["kernel"] + added.astype(layer["kernel"].dtype)
    return merged
