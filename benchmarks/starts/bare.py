"""A hand-written script, up to its first finished step; says on standard output how long it took.

Synopsis:
    python -m benchmarks.starts.bare SECONDS_SINCE_1970_AT_THE_START
"""

import json
import sys
import time

from benchmarks.starts import MARK


def main(began: float) -> None:
    """Takes one step of the tiny network and prints the seconds since the start."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    imported = time.time() - began

    class MLP(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            for _ in range(4):
                x = nn.relu(nn.Dense(16)(x))
            return nn.Dense(10)(x)

    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(32, 16)).astype(np.float32)
    targets = rng.integers(10, size=(32,)).astype(np.int32)
    model, optimizer = MLP(), optax.adam(1e-3)

    @jax.jit
    def init(key: jax.Array) -> tuple:
        params = model.init(key, jnp.zeros_like(inputs))["params"]
        return params, optimizer.init(params)

    def loss_of(params: dict) -> jax.Array:
        logits = model.apply({"params": params}, inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

    def step(params: dict, opt_state: tuple) -> tuple:
        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    state = jax.jit(step, donate_argnums=(0, 1))(*init(jax.random.key(0)))
    jax.block_until_ready(state)
    found = {"imports": imported, "first step": time.time() - began}
    print("\n" + MARK + json.dumps(found))


if __name__ == "__main__":
    main(float(sys.argv[1]))
