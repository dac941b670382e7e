"""The same with Kauldron, up to its first finished step; says how long it took.

Synopsis:
    python -m benchmarks.starts.kauldron SECONDS_SINCE_1970_AT_THE_START
"""

import json
import sys
import tempfile
import time

from benchmarks.starts import MARK


def main(began: float) -> None:
    """Trains for one step of the tiny network and prints the seconds since the start."""
    import flax.linen as nn
    import jax
    import numpy as np
    import optax
    from kauldron import kd, kontext

    imported = time.time() - began

    class MLP(nn.Module):
        x: kontext.Key = "batch.inputs"

        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            for _ in range(4):
                x = nn.relu(nn.Dense(16)(x))
            return nn.Dense(10)(x)

    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(32, 16)).astype(np.float32)
    targets = rng.integers(10, size=(32,)).astype(np.int32)
    data = {"inputs": inputs, "targets": targets[:, None]}
    loss = kd.losses.SoftmaxCrossEntropyWithIntLabels(logits="preds", labels="batch.targets")
    with tempfile.TemporaryDirectory(prefix="xtrainer-benchmark-") as folder:
        trainer = kd.train.Trainer(
            workdir=folder,
            train_ds=kd.data.InMemoryPipeline(loader=lambda: data, batch_size=32, shuffle=False),
            model=MLP(),
            optimizer=optax.adam(1e-3),
            train_losses={"loss": loss},
            num_train_steps=0,  # its last step is the one with this number
            profiler=None,
        )
        state, _ = trainer.train()
        jax.block_until_ready(state)
        found = {"imports": imported, "first step": time.time() - began}
        print("\n" + MARK + json.dumps(found))


if __name__ == "__main__":
    main(float(sys.argv[1]))
