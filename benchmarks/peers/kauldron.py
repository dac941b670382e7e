"""Kauldron: ``Trainer.train`` over a Linen model against a hand-written loop with Optax.

Kauldron divides rows over all devices that JAX finds; the bare loop does the same.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
from kauldron import kd, kontext
from kauldron.data.iterators import NonCheckpointableIterator
from kauldron.train.checkpoint_state import CheckpointState

from benchmarks.models import Batch, Task
from benchmarks.peers.jax_loop import bare_evaluate, make_bare, on_host
from benchmarks.peers.peer import CASE, Course, Evaluate, Peer, Trained, make_folder
from benchmarks.peers.turns import Turns

NEVER = 10**9


class Net(nn.Module):
    """A model, told where its argument comes from."""

    model: nn.Module
    inputs: kontext.Key = "batch.inputs"

    @nn.compact
    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Returns logits."""
        return self.model(inputs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ready(kd.data.Pipeline):
    """Ready batches: over and over, or as many as asked for."""

    batches: list[Batch]
    length: int | None = None
    timed: Callable[[Iterator[Batch]], Iterator[Batch]] | None = None

    def __iter__(self) -> Any:
        """Starts again with the first batch."""
        batches: Iterator[Batch] = itertools.islice(cycle(self.batches), self.length)
        if self.timed is not None:
            batches = self.timed(batches)
        return NonCheckpointableIterator(source=self, iter=batches)

    def __len__(self) -> int:
        """Returns the number of batches.

        Raises:
            TypeError: If there is no end.
        """
        if self.length is None:
            raise TypeError("Endless batches have no length.")
        return self.length


class TurnsEvaluator(kd.evals.EvaluatorBase):
    """What Kauldron calls before a step; it is copied, so that the turns are apart from it."""

    turns: Turns

    def evaluate(self, state: Any, step: int) -> None:
        """Ends a turn and begins the next; there is nothing to log."""
        with jax.transfer_guard("allow"):  # Kauldron's own guard reaches as far as here
            self.turns.change(state)


def ready(task: Task, **settings: Any) -> Ready:
    """Returns the batches of a task; its loss wants a last axis of length one."""
    batches = [{**batch, "targets": batch["targets"][..., None]} for batch in task.batches]
    return Ready(batch_size=len(batches[0]["inputs"]), batches=batches, **settings)


def make_trainer(task: Task, folder: Path, data: Ready, **settings: Any) -> Any:
    """Returns a trainer that logs the loss and its own timings to TensorBoard."""
    loss = kd.losses.SoftmaxCrossEntropyWithIntLabels(logits="preds", labels="batch.targets")
    return kd.train.Trainer(
        workdir=folder,
        train_ds=data,
        model=Net(task.model),
        optimizer=task.optimizer,
        train_losses={"loss": loss},
        log_summaries_every=NEVER,
        profiler=None,  # it would record steps of the first turns
        **settings,
    )


def params_of(state: Any) -> Any:
    """Returns the weights as the task's model has them; copies."""
    return on_host(state.params["model"])


def train(task: Task, course: Course) -> Trained:
    """Trains both in turn."""
    folder = course.folder / "kauldron"
    # The same seed gives the same parameters again.
    params = params_of(make_trainer(task, folder, ready(task)).init_state())
    bare = make_bare(task, params, dataclasses.replace(course, all_devices=True))
    turns = Turns(bare, course.steps)
    each = kd.evals.EveryNSteps(course.steps, skip_first=True)
    settings: dict[str, Any] = {}
    if course.saves:
        settings["checkpointer"] = kd.ckpts.Checkpointer(
            save_interval_steps=2 * course.steps, max_to_keep=1, never_save_step_zero=True
        )
    trainer = make_trainer(
        task,
        folder,
        ready(task, timed=turns.timed if course.saves else None),
        log_metrics_every=course.log_every,
        num_train_steps=course.total,
        evals={"turns": TurnsEvaluator(run=each, turns=turns)},
        **settings,
    )
    state, _ = trainer.train()
    if not course.saves:
        bare.run(1)  # Kauldron's last step is the one with the number num_train_steps

    def read() -> Any:
        like = CheckpointState(trainer.state_specs, trainer._chrono, iter(trainer.train_ds))
        return jax.block_until_ready(trainer.checkpointer.restore(like, donate=False)[0])

    return Trained(turns, params_of(state), on_host(bare.params), read if course.saves else None)


def evaluators(task: Task) -> tuple[Evaluate, Evaluate]:
    """Returns the bare evaluation and ``Evaluator.evaluate``."""
    accuracy = kd.metrics.Accuracy(logits="preds", labels="batch.targets")
    folder = make_folder()
    trainer = make_trainer(task, folder, ready(task), writer=kd.train.metric_writer.NoopWriter())
    state = trainer.init_state()
    made: dict[int, Any] = {}

    def run(length: int) -> tuple[float, float]:
        if length not in made:
            evaluator = kd.evals.Evaluator(
                run=kd.evals.EveryNSteps(1),
                ds=ready(task, length=length),
                metrics={"accuracy": accuracy},
            )
            made[length] = evaluator.update_from_root_cfg(trainer)
        found = made[length].evaluate(state, step=0).compute()
        return found.loss_values["losses/loss"], found.metric_values["metrics/accuracy"]

    return bare_evaluate(task, params_of(state)), run


PEER = Peer(
    name="kauldron",
    train=train,
    evaluators=evaluators,
    note=(
        f"a Linen model; ready batches; {CASE} means that the loss and timings go to TensorBoard; "
        "no metrics, norms or checkpoints; a progress bar, which cannot be left out, goes to a file"
    ),
    missing={"accumulate": "Kauldron has no accumulation of its own, only that of Optax"},
    waits=False,
)
