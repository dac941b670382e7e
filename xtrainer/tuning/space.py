"""From which values does a study choose? One range or list for each key of a config."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from xtrainer.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from ml_collections import ConfigDict


class SuggestingTrial(Protocol):
    """What is asked of Optuna's trial."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Returns a number of a range."""
        ...

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        """Returns a whole number of a range."""
        ...

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """Returns one of several values."""
        ...


@dataclass(frozen=True)
class Float:
    """A number between two others, which are included.

    Attributes:
        low: The smallest.
        high: The largest.
        log: Whether factors count, and not differences.
    """

    low: float
    high: float
    log: bool = False

    def problem(self) -> str | None:
        """Returns what was expected; None where it can be."""
        good = math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high
        good = good and (self.low > 0 or not self.log)
        return None if good else "finite low <= high, and low > 0 with log"

    def suggest(self, trial: SuggestingTrial, name: str) -> float:
        """Returns the trial's value."""
        return trial.suggest_float(name, self.low, self.high, log=self.log)


@dataclass(frozen=True)
class Int:
    """A whole number between two others, which are included.

    Attributes:
        low: The smallest.
        high: The largest.
        step: Between neighbours.
        log: Whether factors count, and not differences; ``step`` is 1 then.
    """

    low: int
    high: int
    step: int = 1
    log: bool = False

    def problem(self) -> str | None:
        """Returns what was expected; None where it can be."""
        whole = all(type(value) is int for value in (self.low, self.high, self.step))
        good = whole and self.low <= self.high and self.step >= 1
        good = good and not (self.log and (self.low < 1 or self.step != 1))
        return None if good else "whole low <= high, step >= 1, with log low >= 1 and step 1"

    def suggest(self, trial: SuggestingTrial, name: str) -> int:
        """Returns the trial's value."""
        return trial.suggest_int(name, self.low, self.high, step=self.step, log=self.log)


@dataclass(frozen=True)
class Choice:
    """One of several values, in no order.

    Attributes:
        options: Numbers, texts, bools or None.
    """

    options: tuple[bool | int | float | str | None, ...]

    def problem(self) -> str | None:
        """Returns what was expected; None where it can be."""
        plain = all(isinstance(one, bool | int | float | str | None) for one in self.options)
        return None if plain and len(self.options) else "a tuple of numbers, texts, bools or None"

    def suggest(self, trial: SuggestingTrial, name: str) -> Any:
        """Returns the trial's value."""
        return trial.suggest_categorical(name, self.options)


Space = Mapping[str, Float | Int | Choice]
"""For each dotted key of a config what a study may set there."""


def suggest(trial: SuggestingTrial, space: Space, config: "ConfigDict") -> dict[str, Any]:
    """Sets the keys of a config to a trial's values, and returns these.

    Args:
        trial: Of ``run_study``; asked again it gives the same values.
        space: What may be chosen, by dotted key.
        config: What ``get_config()`` of an experiment gave; it is changed. What other settings
            follow from by reference follows.

    Raises:
        ConfigError: For keys that the config does not have, with the nearest one, for ranges that
            cannot be, and values of another type than the config's; all together where they are
            known before a value is asked for.

    Example:
        >>> from ml_collections import ConfigDict
        >>> config = ConfigDict({"optimizer": {"scheduler": {"lr": 0.1}}})
        >>> class Lowest:
        ...     def suggest_float(self, name, low, high, *, log=False):
        ...         return low
        >>> suggest(Lowest(), {"optimizer.scheduler.lr": Float(1e-4, 1.0, log=True)}, config)
        {'optimizer.scheduler.lr': 0.0001}
        >>> config.optimizer.scheduler.lr
        0.0001
    """
    problems = []
    for key, values in space.items():
        known = _keys(config)
        if key not in known:
            problems.append(f"space: the config has no {key!r}. {did_you_mean(key, known)}")
        if (wanted := values.problem()) is not None:
            problems.append(f"space: {key}: found {values}, expected {wanted}.")
    if problems:
        raise ConfigError(problems)
    found = {}
    for key, values in space.items():
        *parents, last = key.split(".")
        node: Any = config
        for part in parents:
            node = node[part]
        found[key] = values.suggest(trial, key)
        try:
            node[last] = found[key]
        except TypeError as error:
            raise ConfigError(
                f"space: {key}: found {found[key]!r}, which does not fit the config: {error}. "
                "Choose values of the type that the config has."
            ) from error
    return found


def _keys(config: "ConfigDict", prefix: str = "") -> list[str]:
    from ml_collections import ConfigDict

    found = []
    for key, value in config.items(preserve_field_references=True):
        inside = isinstance(value, ConfigDict)
        found += _keys(value, f"{prefix}{key}.") if inside else [f"{prefix}{key}"]
    return found
