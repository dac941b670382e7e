"""Tunix: ``PeftTrainer`` over an NNX model against a hand-written loop with Flax and Optax."""

import contextlib
from collections.abc import Iterator
from itertools import cycle, islice
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from tunix.sft.hooks import TrainingHooks
from tunix.sft.peft_trainer import PeftTrainer, TrainingConfig

from benchmarks.models import Batch, Task
from benchmarks.peers.jax_loop import bare_evaluate, make_bare, on_host
from benchmarks.peers.peer import Course, Evaluate, Peer, Trained, in_pieces, init_params
from benchmarks.peers.turns import Turns

NEVER = 10**9


class Net(nnx.Module):
    """A Linen model whose parameters NNX holds."""

    def __init__(self, model: nn.Module, params: Any) -> None:
        self.model = model
        self.params = nnx.data(jax.tree.map(nnx.Param, params))

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Returns logits."""
        return self.model.apply({"params": nnx.as_pure(self.params)}, inputs)


def params_of(net: Net) -> Any:
    """Returns the weights as Flax Linen names them; copies."""
    return on_host(nnx.as_pure(net.params))


def loss_of(net: Net, inputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the mean loss of a batch."""
    return optax.softmax_cross_entropy_with_integer_labels(net(inputs), targets).mean()


class TurnsHooks(TrainingHooks):
    """Ends a turn where one is due, and begins the next."""

    def __init__(self, net: Net, turns: Turns, batches: int) -> None:
        self.net, self.turns, self.batches = net, turns, batches
        self.done = 0

    def on_train_step_start(self, train_ctx: Any) -> None:
        """Counts batches, before the step of each."""
        if self.done and self.done % self.batches == 0:
            self.turns.change(nnx.state(self.net))
        self.done += 1

    def on_train_end(self, train_ctx: Any) -> None:
        """Ends the last turn."""
        self.turns.change(nnx.state(self.net))

    def on_train_start(self, train_ctx: Any) -> None:
        """Does nothing."""

    def on_train_step_end(self, train_ctx: Any, train_step: int, train_loss: float) -> None:
        """Does nothing."""

    def on_eval_step_start(self, train_ctx: Any) -> None:
        """Does nothing."""

    def on_eval_step_end(self, train_ctx: Any, eval_loss: float) -> None:
        """Does nothing."""


def make_trainer(net: Net, task: Task, **options: Any) -> PeftTrainer:
    """Returns a trainer. Without ``max_steps`` there is no progress bar, which would cost much."""
    config = TrainingConfig(eval_every_n_steps=NEVER, **options)
    trainer = PeftTrainer(net, task.optimizer, config)
    trainer.with_loss_fn(loss_of)
    return trainer


def options_of(course: Course) -> dict[str, Any]:
    """Returns the options of a course."""
    options: dict[str, Any] = {}
    if course.pieces > 1:
        options["gradient_accumulation_steps"] = course.pieces
    if course.saves:
        every = 2 * course.steps
        options["checkpoint_root_directory"] = str(course.folder / "tunix")
        options["checkpointing_options"] = ocp.CheckpointManagerOptions(
            max_to_keep=1,
            # It saves after a step; this is the first one of a turn.
            should_save_fn=lambda step, previous: step > 1 and step % every == 1,
        )
    return options


def mesh_of(course: Course) -> Any:
    """Returns a mesh over all devices as a context, where a course asks for one."""
    if not course.all_devices:
        return contextlib.nullcontext()
    return jax.sharding.Mesh(np.array(jax.devices()), ("fsdp",))


def train(task: Task, course: Course) -> Trained:
    """Trains both in turn."""
    with mesh_of(course) as mesh:
        params = init_params(task)
        bare = make_bare(task, params, course)
        if mesh is not None:
            whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
            params = jax.device_put(params, whole)
        net = Net(task.model, jax.tree.map(jax.numpy.asarray, params))
        turns = Turns(bare, course.steps)
        trainer = make_trainer(net, task, **options_of(course))
        trainer.with_training_hooks(TurnsHooks(net, turns, course.steps * course.pieces))
        batches: Iterator[Batch] = cycle(in_pieces(task, course.pieces))
        if course.saves:
            trainer.is_managed_externally = True  # it would save once more at its end
            batches = turns.timed(batches)

        def read() -> Any:
            trainer.checkpoint_manager.maybe_restore(net, trainer.optimizer)
            return jax.block_until_ready((nnx.state(net), nnx.state(trainer.optimizer)))

        trainer.train(islice(batches, course.total * course.pieces))
    return Trained(turns, params_of(net), on_host(bare.params), read if course.saves else None)


def evaluators(task: Task) -> tuple[Evaluate, Evaluate]:
    """Returns the bare evaluation, and ``train`` with batches for an evaluation only."""
    params = init_params(task)
    trainer = make_trainer(Net(task.model, jax.tree.map(jax.numpy.asarray, params)), task)
    trainer.is_managed_externally = True  # it would close itself after the first evaluation

    def run(length: int) -> tuple[float, None]:
        trainer.train([], eval_ds=task.loader(length))
        return float(trainer.metrics_logger.get_metric_history("", "loss", "eval")[-1]), None

    return bare_evaluate(task, params), run


PEER = Peer(
    name="tunix",
    train=train,
    evaluators=evaluators,
    note=(
        "a Linen model whose parameters NNX holds; the loss and a norm of the gradient are fetched "
        "at every step; without progress bar"
    ),
)
