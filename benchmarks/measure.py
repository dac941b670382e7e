"""How are two sides compared? Interleaved, in pairs, by medians with their quartiles."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

MIN_REPEATS = 7


@dataclass(frozen=True)
class Spread:
    """A median and its quartiles.

    Attributes:
        median: The middle value.
        low: A quarter of the values lies below.
        high: A quarter of the values lies above.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Returns the spread of some values.

        Raises:
            ValueError: If there is none.

        Example:
            >>> Spread.of([4.0, 1.0, 2.0, 3.0, 5.0])
            Spread(median=3.0, low=2.0, high=4.0)
        """
        if len(values) == 0:
            raise ValueError("Found no values, expected at least one. Measure more repeats.")
        low, median, high = np.percentile(np.asarray(values, np.float64), (25, 50, 75))
        return cls(float(median), float(low), float(high))

    def scaled(self, factor: float) -> "Spread":
        """Returns the spread in another unit."""
        return Spread(self.median * factor, self.low * factor, self.high * factor)


@dataclass(frozen=True)
class Row:
    """One line of the table: a case of a workload, and what both sides needed.

    Attributes:
        workload: The workload's name.
        case: What was varied, such as ``"progress bar"``.
        unit: Of the three values that are no ratios, such as ``"us/step"``.
        bare: The hand-written loop.
        framework: The framework.
        added: The framework minus the loop, in pairs.
        ratio: The framework by the loop, in pairs.
        repeats: Number of pairs.
        who: Which framework.
        note: What a reader must know, or why there are no values.
    """

    workload: str
    case: str
    unit: str = ""
    bare: Spread | None = None
    framework: Spread | None = None
    added: Spread | None = None
    ratio: Spread | None = None
    repeats: int = 0
    who: str = "xtrainer"
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Returns the row as JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Row":
        """Returns the row that :meth:`to_dict` described."""
        spreads = ("bare", "framework", "added", "ratio")
        found = {name: Spread(**data[name]) for name in spreads if data.get(name) is not None}
        return cls(**{**data, **found})


@dataclass(frozen=True)
class Pairs:
    """Seconds of both sides, measured in turn.

    Attributes:
        bare: Of the hand-written loop, one value for each repeat.
        framework: Of the framework, in the same order.
    """

    bare: Sequence[float]
    framework: Sequence[float]

    def row(
        self, workload: str, case: str, unit: str = "us/step", scale: float = 1e6, **texts: str
    ) -> Row:
        """Returns the medians and quartiles as a row.

        Args:
            workload: The workload's name.
            case: What was varied.
            unit: Of the values times ``scale``.
            scale: Units in a second.
            texts: ``who`` and ``note`` of the row.

        Raises:
            ValueError: If the sides have different numbers of values, or none.

        Example:
            >>> row = Pairs([1.0, 2.0, 3.0], [2.0, 3.0, 6.0]).row("mlp", "plain", "s", 1.0)
            >>> row.added.median, row.ratio.median
            (1.0, 2.0)
        """
        if len(self.bare) != len(self.framework):
            raise ValueError(
                f"Found {len(self.bare)} values of the bare loop and {len(self.framework)} of the "
                "framework, expected pairs. Measure both sides equally often."
            )
        bare, framework = np.asarray(self.bare), np.asarray(self.framework)
        return Row(
            workload,
            case,
            unit,
            Spread.of(bare).scaled(scale),
            Spread.of(framework).scaled(scale),
            Spread.of(framework - bare).scaled(scale),
            Spread.of(framework / bare),
            len(bare),
            **texts,
        )


def interleave(
    bare: Callable[[], float], framework: Callable[[], float], repeats: int, warm_up: int = 1
) -> Pairs:
    """Returns the seconds of two sides that are run in turn: A B, B A, A B and so on.

    Args:
        bare: Runs the hand-written side once and returns its seconds.
        framework: Runs the other side once and returns its seconds.
        repeats: Pairs that count.
        warm_up: Pairs before them that do not.

    Example:
        >>> interleave(lambda: 1.0, lambda: 2.0, repeats=2)
        Pairs(bare=[1.0, 1.0], framework=[2.0, 2.0])
    """
    found: list[tuple[float, float]] = []
    for i in range(warm_up + repeats):
        if i % 2:
            second = framework()
            found.append((bare(), second))
        else:
            first = bare()
            found.append((first, framework()))
    kept = found[warm_up:]
    return Pairs([pair[0] for pair in kept], [pair[1] for pair in kept])


def slopes(short_s: Sequence[float], long_s: Sequence[float], more: int) -> list[float]:
    """Returns the seconds of one unit, without what is spent once, from runs of two lengths.

    Args:
        short_s: Seconds of the shorter runs.
        long_s: Seconds of the longer runs, in the same order.
        more: Units by which these are longer.

    Example:
        >>> slopes([3.0, 3.5], [5.0, 5.5], more=4)
        [0.5, 0.5]
    """
    return [(long - short) / more for short, long in zip(short_s, long_s, strict=True)]
