"""Which learning rate? One short course in which it rises, until the loss does (Smith, 2015)."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jax

from xtrainer.data import LoaderSource, num_rows
from xtrainer.errors import ConfigError, LoaderError, require
from xtrainer.metrics import HostWindow, finish
from xtrainer.optim import OptimizerConfig, SchedulerConfig
from xtrainer.state import TrainState
from xtrainer.trainer import TrainerModule
from xtrainer.trainer.batch_trials import check_counts, training_parts
from xtrainer.trainer.kept_state import kept_state
from xtrainer.types import BatchLike

_SMOOTHING = 0.8
"""Of the average over the losses of earlier steps, by which single batches weigh less."""


@dataclass(frozen=True)
class LearningRateCurve:
    """The loss at rising learning rates, one step at each.

    Attributes:
        rates: The learning rates, rising.
        losses: The loss of the step at each, before its update; the last may not be finite.
        diverged: Whether the loss had risen too far before the largest rate was reached.

    Example:
        >>> curve = LearningRateCurve((0.01, 0.1, 1.0, 10.0), (4.0, 3.9, 1.0, 9.0), True)
        >>> curve.suggestion
        0.1
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    diverged: bool

    @property
    def smoothed(self) -> tuple[float, ...]:
        """The losses, averaged over earlier ones with weights that fall by the step."""
        found, average = [], 0.0
        for count, loss in enumerate(self.losses, start=1):
            average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
            found.append(average / (1 - _SMOOTHING**count))
        return tuple(found)

    @property
    def suggestion(self) -> float | None:
        """The rate at which the smoothed loss falls fastest; None where it does not fall."""
        smoothed = self.smoothed
        falls = [
            (after - before, rate)
            for before, after, rate in zip(smoothed, smoothed[1:], self.rates, strict=False)
            if after < before
        ]
        return min(falls)[1] if falls else None

    def table(self, lines: int = 20) -> str:
        """Returns rates and losses as text.

        Args:
            lines: How many rates are shown at most.
        """
        stride = max(-(-len(self.rates) // lines), 1)
        rows = list(zip(self.rates, self.losses, self.smoothed, strict=True))[::stride]
        shown = [f"{rate:>12.3e}  {loss:>12.6g}  {mean:>12.6g}" for rate, loss, mean in rows]
        end = (
            "none: the loss does not fall" if self.suggestion is None else f"{self.suggestion:.3e}"
        )
        head = f"{'rate':>12}  {'loss':>12}  {'smoothed':>12}"
        return "\n".join([head, *shown, f"suggestion: {end}"])

    def plot(self, path: str | Path) -> Path:
        """Draws the losses over the rates and returns where; the ending says the format.

        Args:
            path: Of the image, such as ``curve.png``.

        Raises:
            MissingDependencyError: If no Matplotlib is installed.
        """
        figure = require("matplotlib.figure", "tuning").Figure(figsize=(7, 4), layout="tight")
        axes = figure.add_subplot()
        axes.plot(self.rates, self.losses, color="0.8", label="loss")
        axes.plot(self.rates, self.smoothed, label="smoothed")
        if self.suggestion is not None:
            label = f"suggestion {self.suggestion:.2e}"
            axes.axvline(self.suggestion, color="C1", linestyle=":", label=label)
        finite = [loss for loss in self.smoothed if math.isfinite(loss)]
        if finite and (room := max(finite[0] - min(finite), 0.0)):
            axes.set_ylim(min(finite) - room / 4, finite[0] + room)  # what explodes is cut off
        axes.set(xscale="log", xlabel="learning rate", ylabel="loss")
        axes.legend()
        path = Path(path)
        figure.savefig(path)
        return path


def find_learning_rate(
    trainer: TrainerModule,
    loader: Any,
    min_lr: float = 1e-7,
    max_lr: float = 1.0,
    num_steps: int = 100,
    stop_factor: float = 4.0,
) -> LearningRateCurve:
    """Returns the loss at learning rates from one bound to the other, rising by one factor a step.

    The steps are those of the trainer with a new optimizer state, from the parameters it has now.
    They are compiled once, and taken on copies: state, loader and the trainer's own steps are as
    before. The batches that are read stay in host memory until the end; after the last of the pass
    the first comes again.

    Args:
        trainer: With an ``OptimizerConfig``, whose scheduler is replaced for the course.
        loader: The training data.
        min_lr: The rate of the first step.
        max_lr: That of the last.
        num_steps: Steps in all.
        stop_factor: The course ends where the smoothed loss is this many times its smallest; also
            where a loss is not finite.

    Raises:
        ConfigError: For bounds that cannot be, and an optimizer without a learning rate to set.
        LoaderError: If there is no batch.

    Example::

        curve = find_learning_rate(trainer, loader)
        print(curve.table())
        curve.plot("rates.png")
    """
    _check(trainer, min_lr, max_lr, num_steps, stop_factor)
    with (
        kept_state(trainer) as make_state,
        _rising(trainer, min_lr, max_lr, num_steps) as rate_of,
        _batches(trainer.sources.of(loader, "train")) as batches,
    ):
        executor, prepare = training_parts(trainer)
        state = _with_new_optimizer(trainer, make_state())
        rates, losses, best = (), (), math.inf
        for step, batch in zip(range(num_steps), batches, strict=False):
            if step == 0:
                prepare.begin(num_rows(batch))  # a smaller one at the end of the pass is padded
            state, window, _ = executor(state, prepare(batch), executor.new_window())
            # A refused step has measured nothing, which is NaN here.
            loss = finish(HostWindow.fetch(window), ("mean_nopostfix",), missing="nan")["loss"]
            rates, losses = (*rates, rate_of(step)), (*losses, loss)
            now = LearningRateCurve(rates, losses, True)
            average = now.smoothed[-1]
            if not average <= best + (stop_factor - 1) * abs(best):
                return now
            best = min(best, average)
        return LearningRateCurve(rates, losses, False)


def _check(
    trainer: TrainerModule, min_lr: float, max_lr: float, num_steps: int, stop_factor: float
) -> None:
    check_counts("find_learning_rate", {"num_steps": (num_steps, 2)})
    problems = []
    if not 0 < min_lr < max_lr < math.inf:
        problems.append(
            f"find_learning_rate: found min_lr={min_lr} and max_lr={max_lr}, expected "
            "0 < min_lr < max_lr."
        )
    if not 1 < stop_factor < math.inf:
        problems.append(f"find_learning_rate: found stop_factor={stop_factor}, expected > 1.")
    config = trainer.optimizer_config
    if not isinstance(config, OptimizerConfig):
        problems.append(
            "find_learning_rate: found a ready Optax transformation, whose learning rate cannot be "
            "set from outside; expected an OptimizerConfig."
        )
    elif "lbfgs" in config.name:
        problems.append(
            f"find_learning_rate: found the optimizer {config.name!r}, which searches the length "
            "of each step by itself."
        )
    if problems:
        raise ConfigError(problems)


@contextmanager
def _rising(
    trainer: TrainerModule, min_lr: float, max_lr: float, num_steps: int
) -> Iterator[Callable[[int], float]]:
    """Lets a trainer's new steps follow a rising rate; gives the rate of a step."""
    before = (trainer.optimizer, trainer.lr_schedule, trainer.group_schedules)
    kwargs = {
        "init_value": min_lr,
        "transition_steps": num_steps - 1,
        "decay_rate": max_lr / min_lr,
    }
    schedule = SchedulerConfig(name="optax.exponential_decay", kwargs=kwargs)
    config = cast(OptimizerConfig, trainer.optimizer_config)
    try:
        # All parameters follow the one rate, as it is given.
        groups = tuple(dataclasses.replace(group, scheduler=None) for group in config.groups)
        course = {"scheduler": schedule, "groups": groups, "scale_lr_with": ()}
        trainer.init_optimizer(dataclasses.replace(config, **course))
        schedule_of = trainer.lr_schedule
        if schedule_of is None or not math.isclose(float(schedule_of(0)), min_lr, rel_tol=1e-3):
            raise ConfigError(
                f"find_learning_rate: the optimizer that {type(trainer).__name__}.init_optimizer "
                "makes does not follow the scheduler of its config, expected that it does."
            )
        yield lambda step: float(schedule_of(step))
    finally:
        trainer.optimizer, trainer.lr_schedule, trainer.group_schedules = before


def _with_new_optimizer(trainer: TrainerModule, state: TrainState) -> TrainState:
    """Returns a state whose optimizer has made no update yet, laid out as the old one was."""
    old, new = state.opt_state, jax.eval_shape(trainer.optimizer.init, state.params)
    if jax.tree.structure(old) != jax.tree.structure(new):
        raise ConfigError(
            "find_learning_rate: found an optimizer state of another structure with the scheduler "
            "of the course than with that of the trainer, expected that they differ in their "
            "rates only."
        )
    shardings = jax.tree.map(lambda x: x.sharding, old)
    made = jax.jit(trainer.optimizer.init, out_shardings=shardings)(state.params)
    return state.replace(opt_state=made)


@contextmanager
def _batches(source: LoaderSource) -> Iterator[Iterator[BatchLike]]:
    """Gives the batches that come next, again and again; the loader stays where it was."""
    position, pulled = source.position, []

    def pull() -> Iterator[BatchLike]:
        with contextlib.suppress(StopIteration):
            while True:
                pulled.append(source.pull())
                yield pulled[-1][0]

    def batches() -> Iterator[BatchLike]:
        yield from pull()
        if not pulled and not source.is_one_shot:  # its pass has ended
            source.new_pass()
            yield from pull()
        if not pulled:
            raise LoaderError(
                f"The {source.name!r} loader has no batch left, expected one. Give a new loader."
            )
        while True:
            yield from [batch for batch, _ in pulled]

    try:
        yield batches()
    finally:
        source.push_back(pulled)
        source.restore(position)  # which does nothing where no pass was begun
