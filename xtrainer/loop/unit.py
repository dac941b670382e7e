"""In which unit is the length of a run counted? Epochs or iterations, and parts of an epoch."""

import enum
import math
from fractions import Fraction
from typing import Any

from xtrainer.counts import as_int, wanted_count
from xtrainer.errors import ConfigError, did_you_mean


class TrainingUnit(enum.Enum):
    """What the length of a run is counted in.

    Example:
        >>> unit = TrainingUnit.from_str("epoch")
        >>> unit.totals(2), unit.totals(2.5, epoch_length=5)
        ({'num_epochs': 2}, {'num_train_steps': 13})
    """

    ITERATION = "iteration"
    EPOCH = "epoch"

    @classmethod
    def from_str(cls, label: str) -> "TrainingUnit":
        """Returns the unit of that name, in upper or lower case.

        Raises:
            ConfigError: If there is none; it is a ``ValueError``.
        """
        for unit in cls:
            if isinstance(label, str) and unit.value == label.strip().lower():
                return unit
        known = did_you_mean(label, [unit.value for unit in cls])
        raise ConfigError(f"training unit: found {label!r}. {known}")

    def totals(self, total: float, epoch_length: int | None = None) -> dict[str, int]:
        """Returns the length of a run as ``train_model`` takes it: ``train_model(**totals)``.

        A part of an epoch becomes steps, rounded up; epochs still end with the loader's pass.

        Args:
            total: Epochs or iterations in all; of epochs there may be parts.
            epoch_length: Batches of an epoch, ``len(loader)``; needed for parts of one.

        Raises:
            ConfigError: If that is no length, or an epoch's length is needed and not known.
        """
        name = "num_epochs" if self is TrainingUnit.EPOCH else "num_train_steps"
        exact = _exact(total)
        whole = exact is not None and exact.denominator == 1
        if self is TrainingUnit.EPOCH and exact is not None and not whole:
            if epoch_length is None:
                raise ConfigError(
                    f"training unit: found {total!r} epochs and no epoch_length, expected the "
                    "number of batches of an epoch, which a part of one is counted by."
                )
            _check("epoch_length", epoch_length, least=1)
            name, exact = "num_train_steps", Fraction(math.ceil(exact * as_int(epoch_length)))
        value: Any = total if exact is None or exact.denominator != 1 else exact.numerator
        _check(name, value, found=total)
        return {name: value}


def _exact(total: Any) -> Fraction | None:
    """Returns a number as it is written, so that a tenth of 30 is 3; None for what is none."""
    if isinstance(total, bool | str):
        return None
    try:
        return Fraction(repr(float(total)))
    except (TypeError, ValueError, OverflowError):  # not a number, or not finite
        return None


def _check(name: str, value: Any, least: int = 0, found: Any = None) -> None:
    if wanted := wanted_count(value, least):
        shown = value if found is None else found
        raise ConfigError(f"training unit: found {shown!r} for {name}, expected {wanted}.")
