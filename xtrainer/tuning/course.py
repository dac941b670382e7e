"""How long is a run, how large are its updates, and what does it leave on the disk?"""

from collections.abc import Iterator
from dataclasses import dataclass

from xtrainer.callbacks import ModelCheckpoint
from xtrainer.checkpoint import RESUME_STEPS
from xtrainer.loop import make_plan
from xtrainer.optim import OptimizerConfig
from xtrainer.trainer import TrainerModule
from xtrainer.tree import num_bytes


@dataclass(frozen=True)
class RatePoint:
    """The learning rate at one step.

    Attributes:
        name: ``first step``, ``end of warmup``, ``end of schedule`` or ``last step``.
        step: Counts from 1.
        rate: Of the update that the step makes.
    """

    name: str
    step: int
    rate: float


@dataclass(frozen=True)
class Schedule:
    """The length of a run and its learning rate.

    Attributes:
        steps: Steps in all; None: not known before the data is read.
        epochs: Epochs in all; None: not known before the data is read.
        rates: The learning rate at the points where it turns; empty where it is not known.
    """

    steps: int | None
    epochs: int | None
    rates: tuple[RatePoint, ...]


@dataclass(frozen=True)
class Checkpoints:
    """What one checkpoint callback keeps.

    Attributes:
        folder: Where it saves to.
        num_bytes: Of the arrays of one checkpoint, uncompressed.
        kept: How many there are at the end, at most; None: all, and how many is not known.
        trigger: When it saves, in words.
    """

    folder: str
    num_bytes: int
    kept: int | None
    trigger: str


def make_schedule(
    trainer: TrainerModule,
    num_epochs: int | None,
    num_train_steps: int | None,
    steps_per_epoch: int | None,
) -> Schedule:
    """Returns the length of a run and its learning rate at the points where it turns.

    Raises:
        ConfigError: For both of ``num_epochs`` and ``num_train_steps``, and for numbers that are
            not whole or too small.
    """
    steps = epochs = None
    if num_epochs is not None or num_train_steps is not None:
        plan = make_plan(num_epochs, num_train_steps, steps_per_epoch)
        steps, epochs = plan.total_steps(None), plan.total_epochs(None)
    points = {"first step": 1}
    config = trainer.optimizer_config
    if isinstance(config, OptimizerConfig):
        if config.scheduler.warmup_steps:
            points["end of warmup"] = config.scheduler.warmup_steps + 1
        if steps is None and config.scheduler.decay_steps:
            points["end of schedule"] = config.scheduler.decay_steps
    if steps:
        points["last step"] = steps
    rates = [(name, step, trainer.learning_rate(step)) for name, step in points.items()]
    known = (RatePoint(name, step, rate) for name, step, rate in rates if rate is not None)
    return Schedule(steps, epochs, tuple(known))


def schedule_notes(trainer: TrainerModule, schedule: Schedule) -> Iterator[str]:
    """Yields a sentence where the learning rate is made for another number of steps."""
    config = trainer.optimizer_config
    length = config.scheduler.decay_steps if isinstance(config, OptimizerConfig) else 0
    if schedule.steps and length and length != schedule.steps:
        yield (
            f"optimizer.scheduler.decay_steps: found {length}, while the run has {schedule.steps} "
            "steps: the learning rate does not end with the run."
        )


def checkpoints(trainer: TrainerModule, steps: int | None) -> tuple[Checkpoints, ...]:
    """Returns what each checkpoint callback of a trainer would keep.

    Args:
        trainer: The trainer.
        steps: Steps of the whole run; None: not known.
    """
    found = []
    for callback in trainer.callbacks:
        if isinstance(callback, ModelCheckpoint):
            config, state = callback.config, trainer.state
            saved = state if config.save_optimizer_state else state.replace(opt_state=())
            kept = _kept(trainer, callback, steps)
            trigger = _trigger(trainer, callback)
            found.append(Checkpoints(str(callback.folder), num_bytes(saved), kept, trigger))
    return tuple(found)


def _saves(trainer: TrainerModule, callback: ModelCheckpoint, steps: int | None) -> int | None:
    """Returns how often a run saves; None: not known, as the ends of its epochs are not."""
    by_time = callback.config.every_n_minutes > 0
    config = trainer.trainer_config
    by_epoch = config.check_val_every_n_epoch > 0 or config.checks_per_epoch > 0
    if steps is None or by_time or by_epoch:
        return None
    ends = {steps} if callback.config.save_last and steps else set()
    ends |= {0} if callback.config.save_on_start else set()
    every = (callback.config.every_n_steps, trainer.trainer_config.check_val_every_n_steps)
    return len(ends.union(*(range(n, steps + 1, n) for n in every if n > 0)))


def _kept(trainer: TrainerModule, callback: ModelCheckpoint, steps: int | None) -> int | None:
    saves, limit = _saves(trainer, callback, steps), callback.config.max_to_keep
    if limit is not None and callback.config.monitor is not None:
        limit += RESUME_STEPS  # the newest are kept beside the best
    elif limit is not None:
        limit = max(limit, RESUME_STEPS)
    known = [number for number in (saves, limit) if number is not None]
    return min(known) if known else None


def _trigger(trainer: TrainerModule, callback: ModelCheckpoint) -> str:
    config, reasons = callback.config, []
    if trainer.trainer_config.check_val_every_n_steps > 0:
        reasons.append(f"each validation ({trainer.trainer_config.check_val_every_n_steps} steps)")
    if trainer.trainer_config.check_val_every_n_epoch > 0:
        epochs = config.every_n_epochs * trainer.trainer_config.check_val_every_n_epoch
        reasons.append("each epoch" if epochs == 1 else f"every {epochs} epochs")
    if trainer.trainer_config.checks_per_epoch > 0:
        reasons.append(f"{trainer.trainer_config.checks_per_epoch} times an epoch")
    if config.every_n_steps > 0:
        reasons.append(f"every {config.every_n_steps} steps")
    if config.every_n_minutes > 0:
        reasons.append(f"every {config.every_n_minutes:g} minutes")
    if config.save_on_start:
        reasons.append("the start")
    if config.save_last:
        reasons.append("the end")
    return ", ".join(reasons) or "never"
