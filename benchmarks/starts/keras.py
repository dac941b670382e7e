"""The same with Keras 3 on JAX, up to its first finished step; says how long it took.

Synopsis:
    python -m benchmarks.starts.keras SECONDS_SINCE_1970_AT_THE_START
"""

import json
import os
import sys
import time

from benchmarks.starts import MARK


def main(began: float) -> None:
    """Trains for one step of the tiny network and prints the seconds since the start."""
    os.environ["KERAS_BACKEND"] = "jax"
    import jax
    import keras
    import numpy as np

    imported = time.time() - began
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(32, 16)).astype(np.float32)
    targets = rng.integers(10, size=(32,)).astype(np.int32)
    hidden = [keras.layers.Dense(16, activation="relu") for _ in range(4)]
    model = keras.Sequential([keras.Input((16,)), *hidden, keras.layers.Dense(10)])
    model.compile(
        optimizer=keras.optimizers.Adam(1e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(inputs, targets, batch_size=32, epochs=1, verbose=0)
    jax.block_until_ready([variable.value for variable in model.trainable_variables])
    found = {"imports": imported, "first step": time.time() - began}
    print("\n" + MARK + json.dumps(found))


if __name__ == "__main__":
    main(float(sys.argv[1]))
