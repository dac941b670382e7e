"""Levanter: ``Trainer`` over named arrays against a hand-written loop with Flax and Optax.

Levanter divides rows over all devices that JAX finds; the bare loop does the same.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from itertools import cycle
from typing import Any

import equinox as eqx
import flax.linen as nn
import haliax as hax
import jax
import optax
from levanter.callbacks import eval_loss_loop, log_step_info
from levanter.checkpoint import CheckpointerConfig, load_checkpoint
from levanter.tracker.tensorboard import TensorboardConfig
from levanter.trainer import Trainer, TrainerConfig

from benchmarks.models import Batch, Task
from benchmarks.peers.jax_loop import bare_evaluate, make_bare, on_host
from benchmarks.peers.peer import (
    ALL_HOOKS,
    ORBAX,
    Course,
    Evaluate,
    Peer,
    Trained,
    init_params,
    make_folder,
)
from benchmarks.peers.turns import Turns

NEVER = timedelta(days=365)


def arrays_of(named_arrays: Any) -> Any:
    """Returns the same tree without names."""
    return jax.tree.map(
        lambda x: x.array, named_arrays, is_leaf=lambda x: isinstance(x, hax.NamedArray)
    )


class Net(eqx.Module):
    """A Linen model with its parameters, which have names: Levanter takes others for batches."""

    params: Any
    model: nn.Module = eqx.field(static=True)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Returns logits."""
        return self.model.apply({"params": arrays_of(self.params)}, inputs)


def make_net(task: Task) -> Net:
    """Returns the model of a task."""

    def name(array: Any) -> hax.NamedArray:
        return hax.named(jax.numpy.asarray(array), tuple(f"axis_{i}" for i in range(array.ndim)))

    return Net(jax.tree.map(name, init_params(task)), task.model)


def losses_of(net: Net, batch: Any) -> tuple[jax.Array, jax.Array]:
    """Returns logits and losses of a batch, by the function that the bare loop has."""
    logits, targets = net(batch["inputs"].array), batch["targets"].array
    return logits, optax.softmax_cross_entropy_with_integer_labels(logits, targets)


def loss_of(net: Net, batch: Any, key: Any = None) -> jax.Array:
    """Returns the mean loss of a batch."""
    return losses_of(net, batch)[1].mean()


def loss_and_accuracy_of(net: Net, batch: Any, key: Any = None) -> tuple[jax.Array, Any]:
    """Returns the mean loss of a batch, and its accuracy as a metric."""
    logits, losses = losses_of(net, batch)
    return losses.mean(), {"accuracy": (logits.argmax(-1) == batch["targets"].array).mean()}


def placer(trainer: Trainer) -> Callable[[Batch], dict[str, hax.NamedArray]]:
    """Returns what names a batch and divides its rows over the devices, as Levanter's loader does.

    Levanter would take arrays of the host for constants.
    """
    rows = jax.sharding.PartitionSpec(trainer.compute_axis_mapping["batch"])
    sharding = jax.sharding.NamedSharding(trainer.device_mesh, rows)

    def place(batch: Batch) -> dict[str, hax.NamedArray]:
        arrays = jax.device_put(batch, sharding)
        return {
            name: hax.named(array, ("batch", *(f"axis_{i}" for i in range(1, array.ndim))))
            for name, array in arrays.items()
        }

    return place


def make_trainer(task: Task, course: Course, loss: Callable[..., Any] = loss_of) -> Trainer:
    """Returns a trainer that writes TensorBoard events.

    ``TrainerConfig.initialize`` is left out, which sets up the logging of the whole process, Ray,
    and several processes.
    """
    folder, rows = str(course.folder / "levanter"), len(task.batches[0]["inputs"])
    saves = [{"every": 2 * course.steps}] if course.saves else []
    config = TrainerConfig(
        id="benchmark",
        tracker=TensorboardConfig(logdir=folder),
        log_jaxprs=False,
        log_xla_hlo=False,
        train_batch_size=rows,
        per_device_parallelism=rows // course.pieces // len(jax.devices()),
        num_train_steps=course.total,
        checkpointer=CheckpointerConfig(base_path=folder, keep=saves, save_interval=NEVER),
        load_checkpoint=False,
    )
    # It hands the optimizer the loss as well.
    optimizer = optax.with_extra_args_support(task.optimizer)
    trainer = Trainer(config, optimizer, loss, add_default_hooks=course.all_hooks)
    if not course.all_hooks:
        trainer.add_hook(log_step_info(course.total), every=course.log_every)
    return trainer


def add_saves(trainer: Trainer) -> Callable[[Any], Any]:
    """Adds the hook that saves; returns what reads the newest checkpoint into such a state."""
    checkpointer = trainer.config.checkpointer.create(trainer.run_id)
    trainer.add_hook(checkpointer.on_step, every=1)

    def restore(shapes: Any) -> Any:
        checkpointer.wait_until_finished()
        found = load_checkpoint(
            shapes,
            trainer.checkpoint_path,
            axis_mapping=trainer.parameter_axis_mapping,
            mesh=trainer.device_mesh,
        )
        return jax.block_until_ready(found)

    return restore


def train(task: Task, course: Course) -> Trained:
    """Trains both in turn."""
    bare = make_bare(task, init_params(task), dataclasses.replace(course, all_devices=True))
    turns = Turns(bare, course.steps)
    batches: Iterable[Batch] = cycle(task.batches)
    with make_trainer(task, course) as trainer:
        read = add_saves(trainer) if course.saves else None
        if course.saves:
            batches = turns.timed(batches)
        state = trainer.initial_state(jax.random.PRNGKey(1), model_init=lambda: make_net(task))
        loader: Iterator[Any] = map(placer(trainer), batches)
        # What ``train`` loops over. A hook would ask for the number of every step.
        for i, info in enumerate(trainer.training_steps(state, loader), 1):
            if i % course.steps == 0:
                turns.change(info.state)
        trainer.tracker.finish()
        restore: Callable[[], Any] | None = None
        if read is not None:
            shapes = eqx.filter_eval_shape(lambda: info.state.saveable_state)
            restore = functools.partial(read, shapes)
    return Trained(turns, on_host(arrays_of(info.model.params)), on_host(bare.params), restore)


def evaluators(task: Task) -> tuple[Evaluate, Evaluate]:
    """Returns the bare evaluation and ``eval_loss_loop``, as ``add_eval_hook`` sets it up."""
    course = Course(steps=1, turns=1, folder=make_folder())
    trainer, net = make_trainer(task, course, loss_and_accuracy_of), make_net(task)
    place = placer(trainer)

    @eqx.filter_jit
    def loss(model: Net, batch: Any) -> Any:
        return trainer.loss_fn(trainer.mp.cast_to_compute(model), batch, key=None)

    def run(length: int) -> tuple[float, float]:
        with trainer:
            mean, metrics = eval_loss_loop(loss, net, map(place, task.loader(length)))
        return mean, float(metrics["accuracy"])

    return bare_evaluate(task, init_params(task)), run


ALWAYS = (
    "a Linen model whose arrays Haliax names; most of a step goes into Haliax's looks through its "
    "tree; ready batches; at every step the loss is fetched and checked, and two timings go to "
    "TensorBoard"
)
PEER = Peer(
    name="levanter",
    train=train,
    evaluators=evaluators,
    note=f"{ALWAYS}; the loss every 50 steps; no norms, no progress bar, no checkpoints",
    cases={
        ALL_HOOKS: (
            {"all_hooks": True},
            f"{ALWAYS}; all hooks: the loss at every step, norms at every tenth, a progress bar",
        )
    },
    steps=100,  # a step takes milliseconds
    checkpoint=f"{ORBAX} Levanter keeps all steps.",
)
