"""What tests of the loop look through: trainers that begin again, recorders, numbered batches."""

import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import zoo

import xtrainer as xt
from xtrainer.hooks import Hooks
from xtrainer.loop import OpenRows
from xtrainer.parallel import copy_tree
from xtrainer.trainer.sources import Sources
from xtrainer.types import HostMetrics

ROWS = 4
"""Rows of a numbered batch."""

ALL_HOOKS = tuple(name for name in vars(Hooks) if name.startswith("on_") or name == "finalize")
HOOKS = tuple(
    name for name in ALL_HOOKS if name not in ("on_rollback", "on_checkpoint", "on_best_checkpoint")
)
"""Those that are called in every run."""

Batch = dict[str, np.ndarray]


class Traced(xt.TrainerModule):
    """A classifier that logs which batches it was trained on, as the mean of ``batch["ids"]``."""

    model_class = zoo.MLP

    def loss_function(self, params, apply_fn, batch, rng, train=True):  # type: ignore[override]
        variables, rngs = {"params": params}, {"dropout": rng}
        logits = apply_fn(variables, batch["inputs"], train=train, rngs=rngs)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
        ids = {"value": batch["ids"], "count": jnp.ones_like(loss), "log_modes": ["mean_nopostfix"]}
        return loss, ({"id": ids}, {})


def numbered(count: int, rows: int = ROWS, first: int = 1, bad: Sequence[int] = ()) -> list[Batch]:
    """Returns batches with the ids ``first``, ``first + 1``, ...; those in ``bad`` hold NaN."""
    return [one(number, rows, bad) for number in range(first, first + count)]


def one(number: int, rows: int = ROWS, bad: Sequence[int] = ()) -> Batch:
    """Returns the batch of a number, always the same."""
    data = zoo.classification_data(rows, seed=number)
    inputs = np.full_like(data.inputs, np.nan) if number in bad else data.inputs
    return {
        "inputs": inputs,
        "targets": np.asarray(data.targets),
        "ids": np.full(rows, number, np.float32),
    }


def examples(rows: int) -> Batch:
    """Returns rows with the ids 0, 1, ..., for an ``ArrayLoader``."""
    return {**one(0, rows), "ids": np.arange(rows, dtype=np.float32)}


def traced(**kwargs: Any) -> Any:
    """Returns a trainer of an MLP with BatchNorm and dropout, by Adam, on one device."""
    model = {"width": 4, "batch_norm": True, "dropout": 0.3}
    return zoo.make_trainer(
        **{
            "trainer_class": Traced,
            "model": model,
            "optimizer": zoo.optimizer("adam", 0.01),
            "batch": one(0),
            "mesh": zoo.devices(1),
            **kwargs,
        }
    )


class Memory(xt.LoggerTool):
    """Keeps what was logged."""

    def __init__(self) -> None:
        self.all: list[tuple[str, int, int, HostMetrics]] = []
        self.statuses: list[str] = []

    def log_metrics(self, metrics: HostMetrics, step: int, mode: str, epoch: int) -> None:
        """Keeps a row."""
        self.all.append((mode, step, epoch, dict(metrics)))

    def finalize(self, status: str) -> None:
        """Keeps the status."""
        self.statuses.append(status)

    def rows(self, mode: str = "train") -> list[tuple[int, HostMetrics]]:
        """Returns the steps and metrics of one set, without measured times."""
        return [
            (step, {k: v for k, v in metrics.items() if not k.endswith("time_s")})
            for kind, step, _, metrics in self.all
            if kind == mode
        ]

    def steps(self, mode: str = "train") -> list[int]:
        """Returns the steps that were logged."""
        return [step for step, _ in self.rows(mode)]

    def column(self, key: str, mode: str = "train") -> list[float]:
        """Returns one metric of all rows."""
        return [metrics[key] for _, metrics in self.rows(mode)]


class Recorder(xt.Callback):
    """Notes every hook that is called; ``act`` may do something at each."""

    def __init__(
        self,
        trainer: Any,
        act: Callable[[str, tuple[Any, ...]], None] | None = None,
        hooks: Sequence[str] = HOOKS,
        **config: Any,
    ) -> None:
        super().__init__(xt.CallbackConfig(**config), trainer)
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.act = act
        self.hooks = hooks

    def names(self) -> list[str]:
        """Returns the hooks in the order in which they were called."""
        return [name for name, _ in self.calls]

    def at(self, hook: str) -> list[tuple[Any, ...]]:
        """Returns the arguments of one hook's calls; metrics left out."""
        return [
            tuple(arg for arg in args if not isinstance(arg, dict))
            for name, args in self.calls
            if name == hook
        ]

    def note(self, hook: str, args: tuple[Any, ...]) -> None:
        """Notes a call."""
        if hook in self.hooks:
            copied = tuple(dict(arg) if isinstance(arg, dict) else arg for arg in args)
            self.calls.append((hook, copied))
            if self.act is not None:
                self.act(hook, args)


def _recording(hook: str) -> Callable[..., None]:
    def call(self: Recorder, *args: Any) -> None:
        self.note(hook, args)

    return call


for _name in ALL_HOOKS:
    setattr(Recorder, _name, _recording(_name))


def acting(hook: str, act: Callable[..., None], **config: Any) -> Callable[[Any], Recorder]:
    """Returns what makes a callback that calls ``act(trainer, *args)`` in one hook."""

    def make(trainer: Any) -> Recorder:
        return Recorder(trainer, lambda _, args: act(trainer, *args), (hook,), **config)

    return make


def stop_at(step: int, hook: str = "on_training_step") -> Callable[[Any], Recorder]:
    """Returns what makes a callback that asks to stop when a hook is called at a step."""

    def act(trainer: Any, *args: Any) -> None:
        if trainer.global_step == step:
            trainer.request_stop()

    return acting(hook, act)


class Repeatable:
    """A trainer that begins again with other loggers, callbacks and rhythm, compiled only once."""

    FREE = {
        "check_val_every_n_epoch",
        "check_val_every_n_steps",
        "checks_per_epoch",
        "evaluate_training_set",
        "max_steps_in_flight",
        "enable_progress_bar",
        "on_changed_data",
    }

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self._config = trainer.trainer_config
        self._start = self._copy()

    def _copy(self) -> Any:
        state = self.trainer.state
        return copy_tree(state, jax.tree.map(lambda x: x.sharding, state))

    def begin(
        self,
        *callbacks: xt.CallbackConfig | Callable[[Any], xt.Callback],
        every: int = 1,
        folder: Path | None = None,
        **config: Any,
    ) -> Any:
        """Returns the trainer as it was when it was new.

        Args:
            callbacks: Configs, or functions from a trainer to a callback.
            every: Steps per logged row.
            folder: The run folder; None: ``trainer.logger`` is a :class:`Memory`.
            config: Other fields of ``TrainerConfig`` that do not change what is compiled.

        Raises:
            ValueError: For a field that does.
        """
        if not config.keys() <= self.FREE:
            raise ValueError(f"compiled in: {config.keys() - self.FREE}")
        logger = xt.LoggerConfig(log_every_n_steps=every, log_tools=[])
        if folder is not None:
            logger = zoo.file_logger(folder, every)
        trainer = self.trainer
        trainer.trainer_config = dataclasses.replace(self._config, logger=logger, **config)
        state = self._start
        trainer.state = copy_tree(state, jax.tree.map(lambda x: x.sharding, state))
        sources = Sources(on_changed_data=trainer.trainer_config.on_changed_data)
        trainer.progress, trainer.sources = xt.Progress(), sources
        trainer.stop_reason, trainer.stop_detail, trainer.dataset = None, "", None
        trainer.is_own_state, trainer.restored_rows, trainer.row_keeper = False, None, OpenRows()
        trainer.history.restore({}, 0, keep=False)
        trainer.init_logger(logger)
        if folder is None:
            trainer.logger = Memory()
        trainer.init_callbacks([])
        for make in callbacks:
            if isinstance(make, xt.CallbackConfig):
                trainer.callbacks.append(make.create(trainer))
            else:
                trainer.callbacks.append(make(trainer))
        return trainer


def learned(trainer: Any) -> Any:
    """Returns all that training has changed: state, and how far it is."""
    return zoo.host(trainer.state), trainer.progress.to_json()


def assert_same_course(first: Any, second: Any) -> None:
    """Fails unless two results of :func:`learned` are equal, bit for bit."""
    zoo_equal = np.testing.assert_array_equal
    jax.tree.map(zoo_equal, first[0], second[0])
    assert first[1] == second[1]


def generate(batches: Sequence[Batch], read: list[int] | None = None) -> Iterator[Batch]:
    """Returns a generator over batches; the numbers of those read are added to ``read``."""
    for batch in batches:
        if read is not None:
            read.append(int(batch["ids"][0]))
        yield batch


def prefetch_threads() -> list[threading.Thread]:
    """Returns the threads that read loaders."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch-")]


def all_rows(folder: Path) -> list[dict[str, Any]]:
    """Returns every logged row in its order, without what measures time."""
    rows = xt.read_metrics(folder)
    for row in rows:
        row["metrics"] = {k: v for k, v in row["metrics"].items() if not k.endswith("time_s")}
        del row["time"]
    return rows
