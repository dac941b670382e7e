"""Tunix: ``PeftTrainer`` over an NNX model against a hand-written loop with Flax and Optax."""

import time
from collections.abc import Iterator
from itertools import cycle, islice
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from tunix.sft.hooks import TrainingHooks
from tunix.sft.peft_trainer import PeftTrainer, TrainingConfig

from benchmarks.bare import BareLoop
from benchmarks.measure import Pairs, Row
from benchmarks.models import Task, mlp_task
from benchmarks.peers import CASE, CLASSES, STEPS, WIDTH


class Net(nnx.Module):
    """The tiny network in NNX."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        widths = [WIDTH] * 5 + [CLASSES]
        pairs = zip(widths, widths[1:], strict=False)
        self.layers = nnx.List([nnx.Linear(*pair, rngs=rngs) for pair in pairs])

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns logits."""
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
        return self.layers[-1](x)


def params_of(net: Net) -> dict[str, Any]:
    """Returns the weights as Flax Linen names them; copies."""
    return {
        f"Dense_{i}": {
            "kernel": np.array(layer.kernel.get_value()),
            "bias": np.array(layer.bias.get_value()),
        }
        for i, layer in enumerate(net.layers)
    }


def loss_of(net: Net, inputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the mean loss of a batch."""
    return optax.softmax_cross_entropy_with_integer_labels(net(inputs), targets).mean()


class Turns(TrainingHooks):
    """Takes turns with a bare loop, as ``benchmarks.against.Turns`` does."""

    def __init__(self, net: Net, bare: BareLoop, steps: int) -> None:
        self.net, self.bare, self.steps = net, bare, steps
        self.done = 0
        self.bare_s: list[float] = []
        self.tunix_s: list[float] = []
        self.start: float | None = None

    def on_train_step_start(self, train_ctx: Any) -> None:
        """Ends a turn where one is due, before the next step."""
        if self.done and self.done % self.steps == 0:
            self.change()
        self.done += 1

    def on_train_end(self, train_ctx: Any) -> None:
        """Ends the last turn."""
        self.change()

    def change(self) -> None:
        """Ends a turn and begins the next."""
        jax.block_until_ready(nnx.state(self.net))
        if self.start is not None:
            self.tunix_s.append((time.perf_counter() - self.start) / self.steps)
        seconds = self.bare.run(self.steps) / self.steps
        if self.start is not None:
            self.bare_s.append(seconds)
        self.start = time.perf_counter()

    def on_train_start(self, train_ctx: Any) -> None:
        """Does nothing."""

    def on_train_step_end(self, train_ctx: Any, train_step: int, train_loss: float) -> None:
        """Does nothing."""

    def on_eval_step_start(self, train_ctx: Any) -> None:
        """Does nothing."""

    def on_eval_step_end(self, train_ctx: Any, eval_loss: float) -> None:
        """Does nothing."""


def data_of(task: Task, steps: int) -> Iterator[Any]:
    """Returns as many batches as asked for."""
    return islice(cycle(task.batches), steps)


def run(repeats: int, steps: int = STEPS) -> tuple[Pairs, Net, BareLoop]:
    """Trains both in turn; returns seconds a step, the model and the loop."""
    task, net = mlp_task(), Net(nnx.Rngs(0))
    bare = BareLoop.of(task, params_of(net))
    turns = Turns(net, bare, steps)
    # Without max_steps there is no progress bar, which would cost ten times as much.
    trainer = PeftTrainer(net, task.optimizer, TrainingConfig(eval_every_n_steps=10**9))
    trainer.with_loss_fn(loss_of)
    trainer.with_training_hooks(turns)
    trainer.train(data_of(task, steps * (repeats + 2)))
    return Pairs(turns.bare_s[1:], turns.tunix_s[1:]), net, bare


def measure(repeats: int) -> list[Row]:
    """Returns the row of ``train``."""
    note = "an NNX model; the loss is fetched at every step; without progress bar"
    return [run(repeats)[0].row("mlp", CASE, who="tunix", note=note)]
