"""What is the learning rate of a run? Its schedules, and how they follow the size of a batch.

Linear scaling is that of Goyal et al. (2017) for SGD; the square root keeps the variance of an
update (Krizhevsky, 2014), and is the one that suits Adam (Malladi et al., 2022).
"""

import math
from collections.abc import Sequence
from typing import Protocol

from xtrainer.optim.groups import REST, ParamGroupConfig
from xtrainer.optim.schedules import SchedulerConfig, build_schedule
from xtrainer.types import Schedule


class RateFields(Protocol):
    """The fields of a config that say what the learning rate is."""

    @property
    def scheduler(self) -> SchedulerConfig:
        """The schedule of the parameters of no group."""
        ...

    @property
    def groups(self) -> tuple[ParamGroupConfig, ...]:
        """Parameters that may have schedules of their own."""
        ...

    @property
    def scale_lr_with(self) -> tuple[str, ...]:
        """What all rates grow with."""
        ...

    @property
    def scale_lr_rule(self) -> str:
        """How they grow."""
        ...


def build_schedules(
    config: RateFields, workers: int = 1, micro_batches: int = 1
) -> dict[str, Schedule]:
    """Returns the learning rate of each group, and as ``rest`` that of all other parameters.

    Args:
        config: An ``OptimizerConfig``.
        workers: Devices among which a batch is divided.
        micro_batches: Those of a step.

    Raises:
        ConfigError: Listing every mistake of a schedule.

    Example:
        >>> from xtrainer.optim import OptimizerConfig
        >>> head = ParamGroupConfig(name="head", params=("head/*",), lr_factor=10.0)
        >>> rates = build_schedules(OptimizerConfig(groups=(head,)))
        >>> {name: round(float(rate(0)), 4) for name, rate in rates.items()}
        {'rest': 0.001, 'head': 0.01}
    """
    factor = rate_factor(config.scale_lr_with, config.scale_lr_rule, workers, micro_batches)
    rest = build_schedule(config.scheduler)
    rates = {REST: scaled_schedule(rest, factor)}
    for group in config.groups:
        own = rest if group.scheduler is None else build_schedule(group.scheduler)
        rates[group.name] = scaled_schedule(own, factor * group.lr_factor)
    return rates


def rate_factor(sources: Sequence[str], rule: str, workers: int, micro_batches: int) -> float:
    """Returns what the learning rate is multiplied by.

    Args:
        sources: ``workers``, ``accumulation``, both or none.
        rule: ``linear``, ``sqrt`` or ``constant`` in the product of the numbers of the sources.
        workers: Devices among which a batch is divided.
        micro_batches: Those of a step.

    Example:
        >>> rate_factor(("workers", "accumulation"), "sqrt", workers=8, micro_batches=2)
        4.0
    """
    numbers = {"workers": workers, "accumulation": micro_batches}
    product = math.prod(numbers[source] for source in sources)
    return {"linear": float(product), "sqrt": math.sqrt(product), "constant": 1.0}[rule]


def scaled_schedule(schedule: Schedule, factor: float) -> Schedule:
    """Returns the schedule times a factor; the same function where that is 1.

    Example:
        >>> scaled_schedule(lambda step: 0.1 * step, 4.0)(5)
        2.0
    """
    return schedule if factor == 1 else lambda step: factor * schedule(step)


def source_problems(sources: Sequence[str]) -> list[str]:
    """Returns what is named twice, and would be counted twice."""
    twice = sorted({source for source in sources if list(sources).count(source) > 1})
    return [f"scale_lr_with: found {name!r} twice, expected it once." for name in twice]
