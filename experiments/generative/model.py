"""Which networks play against each other? A generator and a discriminator, in Flax Linen."""

import flax.linen as nn
import jax

from generative.data import load_target
from xtrainer.registry import register_model


class Layers(nn.Module):
    """Dense layers with leaky ReLU between them.

    Args:
        width: Of the hidden layers.
        depth: How many of them.
        features: Numbers of an output.
    """

    width: int
    depth: int
    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns outputs ``[batch, features]``."""
        for _ in range(self.depth):
            x = nn.leaky_relu(nn.Dense(self.width)(x), 0.2)
        return nn.Dense(self.features)(x)


@register_model("gan")
class Gan(nn.Module):
    """Two networks; their parameters lie under ``generator`` and ``discriminator``.

    Args:
        target: What is imitated, a name of :func:`generative.data.load_target`.
        latent_size: Numbers from which one point is made.
        width: Of the hidden layers of both.
        depth: How many of them.
        slope_penalty: Weight of the squared slope of the discriminator at real points (R1).
    """

    target: str = "ring"
    latent_size: int = 16
    width: int = 128
    depth: int = 2
    slope_penalty: float = 0.05

    def setup(self) -> None:
        """Makes both networks."""
        self.generator = Layers(self.width, self.depth, load_target(self.target).features)
        self.discriminator = Layers(self.width, self.depth, 1)

    def generate(self, latents: jax.Array) -> jax.Array:
        """Returns points ``[batch, features]`` for latents ``[batch, latent_size]``."""
        return self.generator(latents)

    def discriminate(self, points: jax.Array) -> jax.Array:
        """Returns how real points look, as logits ``[batch]``."""
        return self.discriminator(points)[..., 0]

    def __call__(self, points: jax.Array, latents: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the logits of real points and of generated ones."""
        return self.discriminate(points), self.discriminate(self.generate(latents))
