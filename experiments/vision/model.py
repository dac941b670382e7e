"""Which network reads the digits? A small convolutional one with BatchNorm, in Flax Linen."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from xtrainer.registry import register_model


@register_model("digits_cnn")
class DigitsCNN(nn.Module):
    """Convolutions with BatchNorm, a halving after each stage but the first, then a linear layer.

    Args:
        num_classes: Number of outputs.
        channels: Channels of each stage.
        dropout_rate: Share of the pooled features dropped in training.
    """

    num_classes: int = 10
    channels: tuple[int, ...] = (32, 64, 128)
    dropout_rate: float = 0.5

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns logits ``[batch, num_classes]`` for ``[batch, height, width, channels]``."""
        x = images
        for stage, channels in enumerate(self.channels):
            x = nn.Conv(channels, (3, 3), use_bias=False, name=f"conv_{stage}")(x)
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name=f"norm_{stage}")(x)
            x = nn.relu(x)
            if stage:
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = jnp.mean(x, axis=(1, 2))
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(self.num_classes, name="head")(x)
