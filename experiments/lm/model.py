"""Which network predicts the next byte? A small decoder-only transformer in Flax Linen."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from xtrainer.registry import register_model


def rotate(x: jax.Array, base: float = 10_000.0) -> jax.Array:
    """Returns queries or keys turned by their position (rotary embedding).

    Args:
        x: Values of shape ``[batch, length, heads, head_dim]`` with an even ``head_dim``.
        base: Largest wavelength, in positions, over two pi.
    """
    length, half = x.shape[1], x.shape[-1] // 2
    frequencies = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = jnp.outer(jnp.arange(length, dtype=jnp.float32), frequencies)[None, :, None, :]
    cos, sin = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)


class ShiftMix(nn.Module):
    """Adds to each position a learned, per-channel share of the positions just before it.

    Bytes mean little alone; a short causal mix spares attention the work of finding neighbours.
    """

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns an array of the shape of ``x``, ``[batch, length, channels]``."""
        init = nn.initializers.normal(stddev=0.1)
        taps = self.param("taps", init, (self.width, x.shape[-1])).astype(x.dtype)
        mixed = x
        for back in range(1, self.width + 1):
            earlier = jnp.pad(x, ((0, 0), (back, 0), (0, 0)))[:, : x.shape[1]]
            mixed = mixed + earlier * taps[back - 1][None, None, :]
        return mixed


class Attention(nn.Module):
    """Causal multi-head self-attention with rotary positions."""

    num_heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns an array of the shape of ``x``, ``[batch, length, channels]``."""
        batch, length, dim = x.shape
        qkv = nn.Dense(3 * dim, use_bias=False, dtype=self.dtype, name="qkv")(x)
        qkv = qkv.reshape(batch, length, 3, self.num_heads, dim // self.num_heads)
        # Queries and keys of one size keep attention soft, so that a high learning rate is safe.
        query = rotate(nn.RMSNorm(dtype=self.dtype, name="query_norm")(qkv[:, :, 0]))
        key = rotate(nn.RMSNorm(dtype=self.dtype, name="key_norm")(qkv[:, :, 1]))
        mixed = jax.nn.dot_product_attention(query, key, qkv[:, :, 2], is_causal=True)
        init = nn.initializers.zeros_init()  # blocks start as the identity
        dense = nn.Dense(dim, use_bias=False, dtype=self.dtype, kernel_init=init, name="out")
        return dense(mixed.reshape(batch, length, dim))


class Block(nn.Module):
    """Pre-norm attention and a squared-ReLU network, each on its own residual branch."""

    num_heads: int
    mlp_dim: int
    shift_width: int
    dropout_rate: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Returns an array of the shape of ``x``, ``[batch, length, channels]``."""
        h = nn.RMSNorm(dtype=self.dtype, name="attention_norm")(x)
        h = ShiftMix(self.shift_width, name="shift")(h) if self.shift_width else h
        h = Attention(self.num_heads, self.dtype, name="attention")(h)
        x = x + nn.Dropout(self.dropout_rate, deterministic=not train)(h)
        h = nn.RMSNorm(dtype=self.dtype, name="mlp_norm")(x)
        h = nn.Dense(self.mlp_dim, use_bias=False, dtype=self.dtype, name="up")(h)
        h = jnp.square(nn.relu(h))
        init = nn.initializers.zeros_init()
        h = nn.Dense(x.shape[-1], use_bias=False, dtype=self.dtype, kernel_init=init, name="down")(
            h
        )
        return x + nn.Dropout(self.dropout_rate, deterministic=not train)(h)


@register_model("byte_lm")
class Transformer(nn.Module):
    """Decoder-only transformer over bytes.

    Args:
        vocab_size: Number of symbols.
        context_length: Longest input; a longer one is an error.
        num_layers: Number of blocks.
        embed_dim: Width of the residual stream; a multiple of ``2 * num_heads``.
        num_heads: Attention heads in each block.
        mlp_dim: Hidden width of each block's network.
        shift_width: How many earlier positions are mixed into a block's input; 0 for none.
        dropout_rate: Share of each branch's outputs dropped in training.
        tie_embeddings: Use the embedding as the output layer.
        dtype: Name of the dtype of computation; parameters and logits are float32.
    """

    vocab_size: int = 256
    context_length: int = 128
    num_layers: int = 4
    embed_dim: int = 128
    num_heads: int = 4
    mlp_dim: int = 512
    shift_width: int = 2
    dropout_rate: float = 0.0
    tie_embeddings: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool = False) -> jax.Array:
        """Returns float32 logits ``[batch, length, vocab_size]``.

        Raises:
            ValueError: If the input is longer than ``context_length``, or the widths do not fit.
        """
        if tokens.shape[1] > self.context_length:
            raise ValueError(
                f"Found {tokens.shape[1]} tokens, expected at most context_length="
                f"{self.context_length}. Shorten the input or raise context_length."
            )
        if self.embed_dim % (2 * self.num_heads):
            raise ValueError(
                f"Found embed_dim={self.embed_dim}, expected a multiple of twice num_heads="
                f"{self.num_heads}. Change one of the two."
            )
        dtype = jnp.dtype(self.dtype)
        init = nn.initializers.normal(stddev=self.embed_dim**-0.5)
        embed = nn.Embed(self.vocab_size, self.embed_dim, embedding_init=init, dtype=dtype)
        x = nn.RMSNorm(dtype=dtype, name="embed_norm")(embed(tokens.astype(jnp.int32)))
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        for i in range(self.num_layers):
            block = Block(
                self.num_heads, self.mlp_dim, self.shift_width, self.dropout_rate, dtype,
                name=f"block_{i}",
            )  # fmt: skip
            x = block(x, train)
        size = jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32))))
        self.sow("intermediates", "residual_rms", size)
        x = nn.RMSNorm(dtype=dtype, name="final_norm")(x)
        if self.tie_embeddings:
            return embed.attend(x).astype(jnp.float32)
        init = nn.initializers.zeros_init()  # the first prediction is uniform: 8 bits a byte
        head = nn.Dense(self.vocab_size, use_bias=False, dtype=dtype, kernel_init=init, name="head")
        return head(x).astype(jnp.float32)
