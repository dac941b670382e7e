"""How does a trainer whose loop is one call take turns with a bare loop? By a callback.

Every so many steps the callback waits for the trainer's state, stops the clock, lets the bare loop
take as many steps under its own clock, and starts the clock again. What ``train_model`` spends at
its start and its end is in no figure.
"""

import contextlib
import io
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import optax

import xtrainer as xt
from benchmarks.measure import Pairs
from benchmarks.models import Task


class BenchTrainer(xt.TrainerModule):
    """A trainer of any task of ``benchmarks.models``; only evaluation has an accuracy."""

    def loss_function(
        self, params: Any, apply_fn: Any, batch: Any, rng: Any, train: bool = True
    ) -> Any:
        """Returns one loss for each target."""
        logits = apply_fn({"params": params}, batch["inputs"])
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
        metrics = {} if train else {"accuracy": logits.argmax(-1) == batch["targets"]}
        return loss, (metrics, {})


@dataclass(frozen=True, kw_only=True)
class TurnsConfig(xt.CallbackConfig):
    """Takes turns with another loop every ``every_n_steps``."""

    def create(self, trainer: Any, data_module: Any = None) -> "Turns":
        """Returns the callback; :meth:`Turns.attach` gives it the other loop."""
        return Turns(self, trainer, data_module)


class Turns(xt.Callback):
    """See :class:`TurnsConfig`.

    Attributes:
        spans: Beginning and end of the trainer's turns, the first one left out: it compiles.
        other_s: Seconds of the other loop's turns, the first one left out as well.
    """

    def __init__(self, config: TurnsConfig, trainer: Any, data_module: Any = None) -> None:
        super().__init__(config, trainer, data_module)
        self.other: Callable[[int], float] = lambda steps: 0.0
        self.spans: list[tuple[float, float]] = []
        self.other_s: list[float] = []
        self.start: float | None = None

    @property
    def trainer_s(self) -> list[float]:
        """Seconds of the trainer's turns."""
        return [end - start for start, end in self.spans]

    def attach(self, other: Callable[[int], float]) -> None:
        """Gives what runs the other loop for a number of steps and returns its seconds."""
        self.other = other

    def on_training_step(self, step_metrics: Any, epoch_idx: int, step_idx: int) -> None:
        """Ends a turn and begins the next."""
        jax.block_until_ready(self.trainer.state)
        if self.start is not None:
            self.spans.append((self.start, time.perf_counter()))
        other_s = self.other(self.config.every_n_steps)
        if self.start is not None:
            self.other_s.append(other_s)
        self.start = time.perf_counter()


class FakeTerminal(io.StringIO):
    """A stream that says that it is a terminal, so that progress bars are drawn."""

    def isatty(self) -> bool:
        """Says yes."""
        return True


@dataclass
class Setting:
    """How the trainer's side is set up.

    Attributes:
        steps: Steps of a turn.
        repeats: Turns that count.
        log_every: Steps of a row; a divisor of ``steps``.
        bar: Whether a progress bar is drawn, to a stream that claims to be a terminal.
        all_devices: Whether the rows are divided over all devices; otherwise one is used.
        options: Further fields of ``TrainerConfig``.
    """

    steps: int
    repeats: int
    log_every: int = 50
    bar: bool = False
    all_devices: bool = False
    options: dict[str, Any] = field(default_factory=dict)


def make_trainer(task: Task, config: xt.TrainerConfig, all_devices: bool = False) -> BenchTrainer:
    """Returns a trainer of a task, on one device or data parallel on all."""
    devices = jax.devices() if all_devices else jax.devices()[:1]
    model = xt.ModelConfig(model_class=lambda: task.model)
    mesh = xt.build_mesh(devices=devices)
    return BenchTrainer(config, model, task.optimizer, task.batches[0], mesh)


@contextlib.contextmanager
def logged_trainer(task: Task, setting: Setting, *callbacks: Any) -> Iterator[BenchTrainer]:
    """Gives a trainer that writes files and TensorBoard events to a folder that is removed."""
    with tempfile.TemporaryDirectory(prefix="xtrainer-benchmark-") as folder:
        config = xt.TrainerConfig(
            enable_progress_bar=setting.bar,
            logger=xt.LoggerConfig(log_every_n_steps=setting.log_every, log_path=folder),
            callbacks=[TurnsConfig(every_n_steps=setting.steps), *callbacks],
            **setting.options,
        )
        yield make_trainer(task, config, setting.all_devices)


def turns_of(trainer: xt.TrainerModule) -> Turns:
    """Returns the callback that takes turns."""
    return next(c for c in trainer.callbacks if isinstance(c, Turns))


def train_in_turns(
    task: Task, setting: Setting, make_bare: Callable[[Any], Any]
) -> tuple[Pairs, BenchTrainer, Any]:
    """Trains with both loops in turn; returns seconds a step, the trainer and the bare loop.

    Both have taken the same number of steps on the same batches then.

    Args:
        task: What is trained.
        setting: How long, and how the trainer is set up.
        make_bare: From initial parameters to what has ``run(steps) -> seconds``.
    """
    with logged_trainer(task, setting) as trainer:
        bare, turns = make_bare(trainer.state.params), turns_of(trainer)
        turns.attach(bare.run)
        drawn = contextlib.redirect_stderr(FakeTerminal()) if setting.bar else None
        with drawn or contextlib.nullcontext():
            # The first turn compiles and the second warms up; neither counts.
            steps = setting.steps * (setting.repeats + 2)
            trainer.train_model(task.loader(), num_train_steps=steps)
    scale = 1 / setting.steps
    pairs = Pairs([s * scale for s in turns.other_s[1:]], [s * scale for s in turns.trainer_s[1:]])
    return pairs, trainer, bare
