"""Levanter: ``Trainer`` over a Haliax model against a hand-written loop with Flax and Optax.

Levanter divides rows over all devices that JAX finds; the bare loop does the same.
"""

import tempfile
import time
from collections.abc import Iterator
from itertools import cycle
from typing import Any

import haliax as hax
import jax
import numpy as np
import optax
from levanter.callbacks import log_step_info
from levanter.checkpoint import CheckpointerConfig
from levanter.tracker.tensorboard import TensorboardConfig
from levanter.trainer import Trainer, TrainerConfig

from benchmarks.bare import BareLoop
from benchmarks.measure import Pairs, Row
from benchmarks.models import Batch, Task, mlp_task
from benchmarks.peers import CASE, CLASSES, ROWS, WIDTH

STEPS = 200
"""Of a turn; fewer than for other peers, as a step takes milliseconds."""
LOG_EVERY = 50
HIDDEN = 4
BATCH, INPUTS, LABELS = hax.make_axes(batch=ROWS, inputs=WIDTH, labels=CLASSES)


def make_model() -> hax.nn.MLP:
    """Returns the tiny network."""
    key = jax.random.key(0)
    return hax.nn.MLP.init(INPUTS, LABELS, WIDTH, HIDDEN, out_first=False, key=key)


def params_of(model: hax.nn.MLP) -> dict[str, Any]:
    """Returns the weights as Flax Linen names them; copies."""
    return {
        f"Dense_{i}": {"kernel": np.array(layer.weight.array), "bias": np.array(layer.bias.array)}
        for i, layer in enumerate(model.layers)
    }


def loss_of(model: hax.nn.MLP, batch: Any, key: Any = None) -> jax.Array:
    """Returns the mean loss of a batch, by the function that the bare loop has."""
    logits, targets = model(batch["inputs"]).array, batch["targets"].array
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


def named(batch: Batch) -> dict[str, hax.NamedArray]:
    """Returns a batch on the device: Levanter takes arrays of the host for constants."""
    inputs, targets = jax.device_put((batch["inputs"], batch["targets"]))
    return {
        "inputs": hax.NamedArray(inputs, (BATCH, INPUTS)),
        "targets": hax.NamedArray(targets, (BATCH,)),
    }


def endless(task: Task) -> Iterator[dict[str, hax.NamedArray]]:
    """Gives ready batches, over and over."""
    return map(named, cycle(task.batches))


def make_trainer(task: Task, folder: str, total: int, all_hooks: bool) -> Trainer:
    """Returns a trainer that writes TensorBoard events.

    ``TrainerConfig.initialize`` is left out, which sets up the logging of the whole process, Ray,
    and several processes.
    """
    config = TrainerConfig(
        id="tiny",
        tracker=TensorboardConfig(logdir=folder),
        log_jaxprs=False,
        log_xla_hlo=False,
        train_batch_size=ROWS,
        num_train_steps=total,
        checkpointer=CheckpointerConfig(base_path=folder, keep=[]),
        load_checkpoint=False,
    )
    # It hands the optimizer the loss as well.
    optimizer = optax.with_extra_args_support(task.optimizer)
    trainer = Trainer(config, optimizer, loss_of, add_default_hooks=all_hooks)
    if not all_hooks:
        trainer.add_hook(log_step_info(total), every=LOG_EVERY)
    return trainer


class Turns:
    """Takes turns with a bare loop, as ``benchmarks.against.Turns`` does."""

    def __init__(self, bare: BareLoop, steps: int) -> None:
        self.bare, self.steps = bare, steps
        self.bare_s: list[float] = []
        self.levanter_s: list[float] = []
        self.start: float | None = None

    def change(self, state: Any) -> None:
        """Ends a turn and begins the next."""
        jax.block_until_ready(state)
        if self.start is not None:
            self.levanter_s.append((time.perf_counter() - self.start) / self.steps)
        seconds = self.bare.run(self.steps) / self.steps
        if self.start is not None:
            self.bare_s.append(seconds)
        self.start = time.perf_counter()


def run(
    repeats: int, steps: int = STEPS, all_hooks: bool = False
) -> tuple[Pairs, hax.nn.MLP, BareLoop]:
    """Trains both in turn; returns seconds a step, the model and the loop."""
    task, total = mlp_task(), steps * (repeats + 2)
    turns = Turns(BareLoop.on_all_devices(task, params_of(make_model())), steps)
    with (
        tempfile.TemporaryDirectory(prefix="xtrainer-benchmark-") as folder,
        make_trainer(task, folder, total, all_hooks) as trainer,
    ):
        state = trainer.initial_state(jax.random.key(1), model_init=make_model)
        # What ``train`` loops over. A hook would ask for the number of every step.
        for i, info in enumerate(trainer.training_steps(state, endless(task)), 1):
            if i % steps == 0:
                turns.change(info.state)
        trainer.tracker.finish()
    return Pairs(turns.bare_s[1:], turns.levanter_s[1:]), info.model, turns.bare


def measure(repeats: int) -> list[Row]:
    """Returns a row without and a row with the hooks that Levanter adds by itself."""
    always = (
        "a Haliax model; most of a step goes into Haliax's looks through its tree; ready batches; "
        "at every step the loss is fetched and checked, and two timings go to TensorBoard"
    )
    few = f"{always}; the loss every 50 steps; no norms, no progress bar, no checkpoints"
    many = f"{always}; all hooks: the loss at every step, norms at every tenth, a progress bar"
    return [
        run(repeats)[0].row("mlp", CASE, who="levanter", note=few),
        run(repeats, all_hooks=True)[0].row("mlp", "log every step", who="levanter", note=many),
    ]
