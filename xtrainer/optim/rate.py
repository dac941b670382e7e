"""How does the learning rate follow the size of a batch? By a factor on the whole schedule.

Linear scaling is that of Goyal et al. (2017) for SGD; the square root keeps the variance of an
update (Krizhevsky, 2014), and is the one that suits Adam (Malladi et al., 2022).
"""

import math
from collections.abc import Sequence

from xtrainer.types import Schedule


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
