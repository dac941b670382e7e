"""The same with Tunix, up to its first finished step; says how long it took.

Synopsis:
    python -m benchmarks.starts.tunix SECONDS_SINCE_1970_AT_THE_START
"""

import json
import sys
import time

from benchmarks.starts import MARK


def main(began: float) -> None:
    """Trains for one step of the tiny network and prints the seconds since the start."""
    import jax
    import numpy as np
    import optax
    from flax import nnx
    from tunix.sft.peft_trainer import PeftTrainer, TrainingConfig

    imported = time.time() - began

    class MLP(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            widths = [16] * 5 + [10]
            pairs = zip(widths, widths[1:], strict=False)
            self.layers = nnx.List([nnx.Linear(*pair, rngs=rngs) for pair in pairs])

        def __call__(self, x: jax.Array) -> jax.Array:
            for layer in self.layers[:-1]:
                x = nnx.relu(layer(x))
            return self.layers[-1](x)

    def loss_of(net: MLP, inputs: jax.Array, targets: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(net(inputs), targets).mean()

    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(32, 16)).astype(np.float32)
    targets = rng.integers(10, size=(32,)).astype(np.int32)
    net = MLP(nnx.Rngs(0))
    trainer = PeftTrainer(net, optax.adam(1e-3), TrainingConfig(eval_every_n_steps=10**9))
    trainer.with_loss_fn(loss_of)
    trainer.train([{"inputs": inputs, "targets": targets}])
    jax.block_until_ready(nnx.state(net))
    found = {"imports": imported, "first step": time.time() - began}
    print("\n" + MARK + json.dumps(found))


if __name__ == "__main__":
    main(float(sys.argv[1]))
