"""How large is the step, when? Warmup, a main part and cooldown, as one pure function."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import optax

from xtrainer.config import Config, check_configs
from xtrainer.errors import ConfigError, did_you_mean
from xtrainer.optim.optax_names import (
    PREFIX,
    call_problems,
    is_factory,
    schedule_factories,
    taken_problems,
)
from xtrainer.registry import schedules, tell_names
from xtrainer.types import Schedule

DECAYING = ("cosine_decay", "exponential_decay", "linear")
SCHEDULES = ("constant", *DECAYING)
tell_names("schedule", lambda: [*SCHEDULES, *schedule_factories()])


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig(Config):
    """The learning rate over the optimizer's updates, which count from 0.

    The rate rises linearly from 0 in ``warmup_steps``, follows the schedule ``name``, and falls
    linearly from the value reached to ``cooldown_lr`` in ``cooldown_steps``.
    """

    name: str = "constant"
    """``constant``, ``cosine_decay``, ``exponential_decay``, ``linear``, or ``optax.NAME`` for any
    schedule of Optax, or a name given to :func:`register_schedule`; of these two step 0 is the end
    of the warmup."""
    lr: float = 1e-3
    """The highest learning rate, reached at the end of the warmup (not for ``optax.NAME`` and
    registered names)."""
    decay_steps: int = 0
    """All updates, those of warmup and cooldown included; 0: not given. Decaying schedules and a
    cooldown need it."""
    end_lr: float | None = None
    """Where a decaying schedule ends; None: at ``end_lr_factor * lr``, or at 0 without that."""
    end_lr_factor: float | None = None
    """The same as a part of ``lr``; give one of the two."""
    warmup_steps: int = 0
    """Updates from a rate of 0 to the beginning of the schedule."""
    cooldown_steps: int = 0
    """The last updates, which lead to ``cooldown_lr``."""
    cooldown_lr: float = 0.0
    """Where the cooldown ends."""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of an ``optax.NAME`` or registered schedule."""

    @property
    def main_steps(self) -> int:
        """Updates between warmup and cooldown."""
        return self.decay_steps - self.warmup_steps - self.cooldown_steps

    def problems(self) -> list[str]:
        """Returns names, rates and step counts that cannot make a schedule."""
        found = _rate_problems(self) + _step_problems(self)
        if is_factory(self.name, schedules) and self.name not in SCHEDULES:
            return found + _optax_problems(self)
        if self.kwargs:
            found.append(
                f"kwargs: found {dict(self.kwargs)!r} with name={self.name!r}, expected none; "
                f"they belong to registered names and those that begin with {PREFIX!r}."
            )
        if self.name in SCHEDULES:
            found += taken_problems(self.name, schedules)
        else:
            found.append(
                f"name: found {self.name!r}. {did_you_mean(self.name, [*SCHEDULES, *schedules])} "
                f"Any schedule of Optax works as '{PREFIX}NAME'."
            )
        return found


def build_schedule(config: SchedulerConfig) -> Schedule:
    """Returns the learning rate as a function of the number of updates made, an int array.

    Raises:
        ConfigError: Listing every mistake of the config.

    Example:
        >>> config = SchedulerConfig(name="linear", lr=0.5, warmup_steps=2, decay_steps=6)
        >>> [float(build_schedule(config)(step)) for step in (0, 1, 2, 4, 6)]
        [0.0, 0.25, 0.5, 0.25, 0.0]
    """
    check_configs(scheduler=config)
    main = _main_schedule(config)
    stages, boundaries = [main], []
    if config.warmup_steps:
        stages.insert(0, _line(lambda: 0.0, lambda: main(0), config.warmup_steps))
        boundaries.append(config.warmup_steps)
    if config.cooldown_steps:
        # The value is read from the schedule itself, so that no name can leave a jump here.
        reached, end = (lambda: main(config.main_steps)), (lambda: config.cooldown_lr)
        stages.append(_line(reached, end, config.cooldown_steps))
        boundaries.append(config.decay_steps - config.cooldown_steps)
    joined = optax.join_schedules(stages, boundaries)

    def schedule(step: Any) -> Any:
        value = jnp.asarray(joined(step), jnp.result_type(float))
        return jnp.broadcast_to(value, jnp.shape(step))

    return schedule


def _line(start: Callable[[], Any], end: Callable[[], Any], steps: int) -> Schedule:
    return lambda step: optax.linear_schedule(start(), end(), steps)(step)


def _main_schedule(config: SchedulerConfig) -> Schedule:
    if is_factory(config.name, schedules):
        return _optax_schedule(config)
    lr, steps, end_lr = config.lr, config.main_steps, _end_lr(config)
    if config.name == "constant" or steps == 0:  # all steps may be warmup and cooldown
        return optax.constant_schedule(lr)
    if config.name == "cosine_decay":
        return optax.cosine_decay_schedule(lr, steps, alpha=end_lr / lr)
    if config.name == "exponential_decay":
        return optax.exponential_decay(lr, steps, decay_rate=end_lr / lr, end_value=end_lr)
    return optax.linear_schedule(lr, end_lr, steps)


def _optax_schedule(config: SchedulerConfig) -> Schedule:
    try:
        schedule = schedule_factories()[config.name](**config.kwargs)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"scheduler.kwargs: {config.name} cannot be built from {dict(config.kwargs)!r}: {error}"
        ) from error
    if config.name not in schedules:
        return schedule
    # A joined schedule is asked for steps before its own first one too; their values are not used.
    return lambda step: schedule(jnp.maximum(step, 0))


def _end_lr(config: SchedulerConfig) -> float:
    if config.end_lr is not None:
        return config.end_lr
    return config.lr * (config.end_lr_factor or 0.0)


def _rate_problems(config: SchedulerConfig) -> list[str]:
    found = []
    if not (config.lr > 0 and math.isfinite(config.lr)):
        found.append(f"lr: found {config.lr}, expected a finite number > 0.")
    for name in ("end_lr", "end_lr_factor", "cooldown_lr"):
        value = getattr(config, name)
        if value is not None and not (value >= 0 and math.isfinite(value)):
            found.append(f"{name}: found {value}, expected a finite number >= 0.")
    if config.end_lr is not None and config.end_lr_factor is not None:
        found.append(
            f"end_lr: found {config.end_lr} beside end_lr_factor={config.end_lr_factor}, which "
            "says the same. Give one of them."
        )
    elif config.name == "exponential_decay" and not _end_lr(config) > 0:
        found.append(
            f"end_lr: found {config.end_lr} with end_lr_factor={config.end_lr_factor}; an "
            "exponential decay never reaches 0. Give one of them a value > 0."
        )
    return found


def _step_problems(config: SchedulerConfig) -> list[str]:
    found = [
        f"{name}: found {getattr(config, name)}, expected a number of steps >= 0."
        for name in ("decay_steps", "warmup_steps", "cooldown_steps")
        if getattr(config, name) < 0
    ]
    if found:
        return found
    if config.decay_steps == 0:
        if config.name in DECAYING or config.cooldown_steps:
            reason = config.name if config.name in DECAYING else "a cooldown"
            found.append(
                f"decay_steps: found 0; {reason} needs the number of all updates. Set it to the "
                "number of training steps."
            )
    elif config.main_steps < 0:
        found.append(
            f"decay_steps: found {config.decay_steps}, expected at least warmup_steps + "
            f"cooldown_steps = {config.warmup_steps} + {config.cooldown_steps}, which it includes."
        )
    return found


def _optax_problems(config: SchedulerConfig) -> list[str]:
    factories = schedule_factories()
    if config.name not in factories:
        return [f"name: found {config.name!r}. {did_you_mean(config.name, factories)}"]
    unused = {"lr": SchedulerConfig.lr, "end_lr": None, "end_lr_factor": None}
    return [
        f"{name}: found {getattr(config, name)}, which {config.name} does not read. Put its rates "
        "into kwargs."
        for name, default in unused.items()
        if getattr(config, name) != default
    ] + call_problems(config.name, factories[config.name], config.kwargs)
