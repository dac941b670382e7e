"""Keras 3 on JAX: ``Model.fit`` against a hand-written loop with Flax and Optax."""

from collections.abc import Iterator
from itertools import cycle
from typing import Any

import jax
import keras

from benchmarks.models import Batch, Task
from benchmarks.peers.jax_loop import bare_evaluate, make_bare, on_host
from benchmarks.peers.peer import Course, Evaluate, Peer, Trained, in_pieces, init_params
from benchmarks.peers.turns import Turns


def make_model(task: Task, pieces: int = 1, metrics: tuple[Any, ...] = ()) -> Any:
    """Returns the model of a task in a layer of Keras, compiled for ``fit``."""
    if keras.backend.backend() != "jax":
        raise RuntimeError(
            f"Found the Keras backend {keras.backend.backend()!r}, expected 'jax'. Set "
            "KERAS_BACKEND=jax."
        )

    def apply(params: Any, inputs: Any) -> Any:
        return task.model.apply({"params": params}, inputs)

    inputs = task.batches[0]["inputs"]
    layer = keras.layers.JaxLayer(apply, params=init_params(task))
    model = keras.Sequential([keras.Input(inputs.shape[1:], dtype=str(inputs.dtype)), layer])
    model.compile(
        optimizer=keras.optimizers.Adam(
            task.rate,
            epsilon=task.epsilon,
            gradient_accumulation_steps=pieces if pieces > 1 else None,
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=list(metrics),
    )
    return model


def params_of(model: Any) -> Any:
    """Returns the weights as Flax names them; copies."""
    return on_host(jax.tree.map(lambda variable: variable.value, model.layers[-1].params))


class TurnsCallback(keras.callbacks.Callback):
    """Ends a turn where one is due, and begins the next."""

    def __init__(self, turns: Turns, batches: int) -> None:
        super().__init__()
        self.turns, self.batches = turns, batches

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Counts batches; what is logged are outputs of the newest step."""
        if (batch + 1) % self.batches == 0:
            self.turns.change(dict(logs or {}))


def in_tuples(batches: Iterator[Batch]) -> Iterator[tuple[Any, Any]]:
    """Gives inputs and targets; a generator, as Keras asks for one."""
    for batch in batches:
        yield batch["inputs"], batch["targets"]


def train(task: Task, course: Course) -> Trained:
    """Trains both in turn."""
    if course.all_devices:
        keras.distribution.set_distribution(keras.distribution.DataParallel())
    model = make_model(task, course.pieces)
    bare = make_bare(task, params_of(model), course)
    turns = Turns(bare, course.steps)
    callbacks: list[Any] = [TurnsCallback(turns, course.steps * course.pieces)]
    batches: Iterator[Batch] = cycle(in_pieces(task, course.pieces))
    folder = str(course.folder / "keras")
    if course.saves:
        batches = turns.timed(batches)
        callbacks.append(
            keras.callbacks.OrbaxCheckpoint(folder, save_freq=2 * course.steps, max_to_keep=1)
        )

    def read() -> Any:
        model.load_weights(folder)  # and the moments
        return jax.block_until_ready([variable.value for variable in model.variables])

    model.fit(
        in_tuples(batches),
        steps_per_epoch=course.total * course.pieces,
        epochs=1,
        verbose=0,
        callbacks=callbacks,
    )
    return Trained(turns, params_of(model), on_host(bare.params), read if course.saves else None)


def evaluators(task: Task) -> tuple[Evaluate, Evaluate]:
    """Returns the bare evaluation and ``evaluate``."""
    model = make_model(task, metrics=(keras.metrics.SparseCategoricalAccuracy(),))

    def run(length: int) -> tuple[float, float]:
        batches = in_tuples(iter(task.loader(length)))
        loss, accuracy = model.evaluate(batches, steps=length, verbose=0)
        return loss, accuracy

    return bare_evaluate(task, params_of(model)), run


PEER = Peer(
    name="keras",
    train=train,
    evaluators=evaluators,
    note=(
        "a Linen model in a JaxLayer; fit with a callback, without a progress bar; a generator "
        "gives the batches; Keras sums its metrics at every step and logs nothing"
    ),
    waits=False,
)
