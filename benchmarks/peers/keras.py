"""Keras 3 on JAX: ``Model.fit`` against a hand-written loop with Flax and Optax."""

import time
from collections.abc import Iterator
from itertools import cycle
from typing import Any

import jax
import keras
import numpy as np

from benchmarks.bare import BareLoop
from benchmarks.measure import Pairs, Row
from benchmarks.models import Batch, mlp_task
from benchmarks.peers import CASE, CLASSES, EPSILON, LEARNING_RATE, STEPS, WIDTH


def make_model() -> Any:
    """Returns the tiny network, compiled for ``fit``."""
    hidden = [keras.layers.Dense(WIDTH, activation="relu") for _ in range(4)]
    model = keras.Sequential([keras.Input((WIDTH,)), *hidden, keras.layers.Dense(CLASSES)])
    model.compile(
        optimizer=keras.optimizers.Adam(LEARNING_RATE, epsilon=EPSILON),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def params_of(model: Any) -> dict[str, Any]:
    """Returns the weights as Flax names them; copies."""
    pairs = [layer.get_weights() for layer in model.layers]
    return {
        f"Dense_{i}": {"kernel": np.array(kernel), "bias": np.array(bias)}
        for i, (kernel, bias) in enumerate(pairs)
    }


class Turns(keras.callbacks.Callback):
    """Takes turns with a bare loop, as ``benchmarks.against.Turns`` does."""

    def __init__(self, bare: BareLoop, steps: int) -> None:
        super().__init__()
        self.bare, self.steps = bare, steps
        self.bare_s: list[float] = []
        self.keras_s: list[float] = []
        self.start: float | None = None

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Ends a turn where one is due, and begins the next."""
        if (batch + 1) % self.steps:
            return
        jax.block_until_ready(dict(logs or {}))  # outputs of the newest step
        if self.start is not None:
            self.keras_s.append((time.perf_counter() - self.start) / self.steps)
        seconds = self.bare.run(self.steps) / self.steps
        if self.start is not None:
            self.bare_s.append(seconds)
        self.start = time.perf_counter()


def endless(batches: list[Batch]) -> Iterator[tuple[Any, Any]]:
    """Gives inputs and targets, over and over; a generator, as Keras asks for one."""
    yield from cycle([(batch["inputs"], batch["targets"]) for batch in batches])


def run(repeats: int, steps: int = STEPS) -> tuple[Pairs, Any, BareLoop]:
    """Trains both in turn; returns seconds a step, the model and the loop."""
    if keras.backend.backend() != "jax":
        raise RuntimeError(
            f"Found the Keras backend {keras.backend.backend()!r}, expected 'jax'. Set "
            "KERAS_BACKEND=jax."
        )
    task, model = mlp_task(), make_model()
    bare = BareLoop.of(task, params_of(model))
    turns = Turns(bare, steps)
    total = steps * (repeats + 2)
    data = endless(task.batches)
    model.fit(data, steps_per_epoch=total, epochs=1, verbose=0, callbacks=[turns])
    return Pairs(turns.bare_s[1:], turns.keras_s[1:]), model, bare


def measure(repeats: int) -> list[Row]:
    """Returns the row of ``fit``; Keras sums its metrics at every step and logs nothing."""
    note = "fit with a callback, without a progress bar; a generator gives the batches"
    return [run(repeats)[0].row("mlp", CASE, who="keras", note=note)]
