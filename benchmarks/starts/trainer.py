"""The same with xtrainer, up to its first finished step; says how long it took.

Synopsis:
    python -m benchmarks.starts.trainer SECONDS_SINCE_1970_AT_THE_START
"""

import json
import sys
import time

from benchmarks.starts import MARK


def main(began: float) -> None:
    """Trains for one step of the tiny network and prints the seconds since the start."""
    import flax.linen as nn
    import jax
    import numpy as np
    import optax

    import xtrainer as xt

    imported = time.time() - began

    class MLP(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            for _ in range(4):
                x = nn.relu(nn.Dense(16)(x))
            return nn.Dense(10)(x)

    class Classifier(xt.TrainerModule):
        def loss_function(
            self, params: dict, apply_fn: object, batch: dict, rng: object, train: bool = True
        ) -> tuple:
            logits = self.model.apply({"params": params}, batch["inputs"])
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
            return losses, ({}, {})

        def on_training_step(self, step_metrics: dict, epoch_idx: int, step_idx: int) -> None:
            jax.block_until_ready(self.state)
            found = {"imports": imported, "first step": time.time() - began}
            print("\n" + MARK + json.dumps(found))

    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(32, 16)).astype(np.float32)
    targets = rng.integers(10, size=(32,)).astype(np.int32)
    batch = {"inputs": inputs, "targets": targets}
    config = xt.TrainerConfig(enable_progress_bar=False)
    trainer = Classifier(config, xt.ModelConfig(model_class=MLP), optax.adam(1e-3), batch)
    trainer.train_model([batch], num_train_steps=1)


if __name__ == "__main__":
    main(float(sys.argv[1]))
