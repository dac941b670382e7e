"""Kauldron: ``Trainer.train`` over a Linen model against a hand-written loop with Optax.

Kauldron divides rows over all devices that JAX finds; the bare loop does the same.
"""

import dataclasses
import tempfile
import time
from itertools import cycle
from typing import Any

import jax
import numpy as np
from kauldron import kd, kontext
from kauldron.data.iterators import NonCheckpointableIterator

from benchmarks.bare import BareLoop
from benchmarks.measure import Pairs, Row
from benchmarks.models import MLP, Batch, Task, mlp_task
from benchmarks.peers import CASE, CLASSES, ROWS, STEPS, WIDTH

LOG_EVERY = 50
NEVER = 10**9


class Net(MLP):
    """The tiny network, told where its argument ``x`` comes from."""

    x: kontext.Key = "batch.inputs"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Endless(kd.data.Pipeline):
    """Ready batches, over and over."""

    batches: list[Batch]

    def __iter__(self) -> Any:
        """Starts again with the first batch."""
        return NonCheckpointableIterator(source=self, iter=cycle(self.batches))


class Turns:
    """Takes turns with a bare loop, as ``benchmarks.against.Turns`` does."""

    def __init__(self, bare: BareLoop, steps: int) -> None:
        self.bare, self.steps = bare, steps
        self.bare_s: list[float] = []
        self.kauldron_s: list[float] = []
        self.start: float | None = None

    def change(self, state: Any) -> None:
        """Ends a turn and begins the next."""
        jax.block_until_ready(state)
        if self.start is not None:
            self.kauldron_s.append((time.perf_counter() - self.start) / self.steps)
        with jax.transfer_guard("allow"):  # Kauldron's own guard reaches as far as here
            seconds = self.bare.run(self.steps) / self.steps
        if self.start is not None:
            self.bare_s.append(seconds)
        self.start = time.perf_counter()


class TurnsEvaluator(kd.evals.EvaluatorBase):
    """What Kauldron calls before a step; it is copied, so that :class:`Turns` is apart from it."""

    turns: Turns

    def evaluate(self, state: Any, step: int) -> None:
        """Ends a turn and begins the next; there is nothing to log."""
        self.turns.change(state)


def make_trainer(task: Task, folder: str, **settings: Any) -> Any:
    """Returns a trainer that logs the loss and its own timings to TensorBoard."""
    # Its loss wants a last axis of length one.
    batches = [{**batch, "targets": batch["targets"][:, None]} for batch in task.batches]
    loss = kd.losses.SoftmaxCrossEntropyWithIntLabels(logits="preds", labels="batch.targets")
    return kd.train.Trainer(
        workdir=folder,
        train_ds=Endless(batch_size=ROWS, batches=batches),
        model=Net((WIDTH,) * 4 + (CLASSES,)),
        optimizer=task.optimizer,
        train_losses={"loss": loss},
        log_metrics_every=LOG_EVERY,
        log_summaries_every=NEVER,
        profiler=None,  # it would record steps of the first turns
        **settings,
    )


def params_of(state: Any) -> dict[str, Any]:
    """Returns the weights; copies."""
    return jax.tree.map(np.array, state.params)


def run(repeats: int, steps: int = STEPS) -> tuple[Pairs, Any, BareLoop]:
    """Trains both in turn; returns seconds a step, the state and the loop."""
    task = mlp_task()
    with tempfile.TemporaryDirectory(prefix="xtrainer-benchmark-") as folder:
        # The same seed gives the same parameters again.
        params = params_of(make_trainer(task, folder).init_state())
        turns = Turns(BareLoop.on_all_devices(task, params), steps)
        evaluator = TurnsEvaluator(run=kd.evals.EveryNSteps(steps, skip_first=True), turns=turns)
        total = steps * (repeats + 2)
        trainer = make_trainer(task, folder, num_train_steps=total, evals={"turns": evaluator})
        state, _ = trainer.train()
    turns.bare.run(1)  # Kauldron's last step is the one with the number num_train_steps
    return Pairs(turns.bare_s[1:], turns.kauldron_s[1:]), state, turns.bare


def measure(repeats: int) -> list[Row]:
    """Returns the row of ``train``."""
    note = (
        "a Linen model; ready batches; the loss and timings go to TensorBoard every 50 steps; no "
        "metrics, norms or checkpoints; a progress bar, which cannot be left out, goes to a file"
    )
    return [run(repeats)[0].row("mlp", CASE, who="kauldron", note=note)]
