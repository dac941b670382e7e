"""Which curves does a run have, and which of them belong into one picture?"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from xtrainer.report.run import Row, RunRecord

MOST_POINTS = 2_000
"""Of a curve; of a longer one the smallest and largest of each stretch are kept."""
MOST_POINTS_IN_ALL = 400_000
MOST_CURVES = 32
"""Of a picture, such as the norms of all parameters; of more, those that end highest are kept."""

GROUPS = ("metrics", "optimization", "intermediates", "speed")
_SPEED = re.compile(r"(steps|examples|tokens|flops)_per_s|mfu|(.*_)?time_s|throughput")
_RATE = re.compile(r"learning_rate.*|lr|(batch_size|loss_scale|skipped_steps).*")
_NORM = re.compile(r"(grad|param|update)_norm(?P<path>/.*)?")
_FIRST = (
    *("loss", "perplexity", "bits_per_byte", "accuracy", "learning_rate", "grad_norm"),
    *("param_norm", "tokens_per_s", "examples_per_s", "steps_per_s", "flops_per_s", "mfu"),
)


@dataclass(frozen=True)
class Curve:
    """The values of one metric of one set.

    Attributes:
        name: What the legend says.
        mode: The set that gives its colour; of a validation set among several ``val``.
        steps: Of its points.
        hours: The same points by time, in hours since the first start; None: not known.
        values: NaN and infinities are None, a gap.
        left: Whether the steps were taken again, so that these rows do not count.
    """

    name: str
    mode: str
    steps: list[int]
    hours: list[float | None]
    values: list[float | None]
    left: bool = False


@dataclass
class Panel:
    """One picture.

    Attributes:
        title: The metric.
        group: One of ``GROUPS``.
        curves: Drawn over each other.
    """

    title: str
    group: str
    curves: list[Curve] = field(default_factory=list)

    @property
    def gaps(self) -> int:
        """Values that are not finite."""
        return sum(value is None for curve in self.curves for value in curve.values)


def panels_of(run: RunRecord) -> list[Panel]:
    """Returns the pictures of a run's metrics, the most telling first."""
    origin = began(run)
    train = {
        _base(name, row.mode) for row in run.rows if row.mode == "train" for name in row.metrics
    }
    panels: dict[tuple[str, str], Panel] = {}
    for rows, left in ((run.rows, False), (run.superseded, True)):
        for (mode, name), points in _points(rows).items():
            title, curve_name, colour = place_of(name, mode, train)
            group = group_of(title)
            panel = panels.setdefault((group, title), Panel(title, group))
            suffix = ", taken again" if left else ""
            panel.curves.append(_curve(f"{curve_name}{suffix}", colour, points, origin, left))
    if not any(p.group == "speed" and p.title.endswith("per_s") for p in panels.values()):
        if (speed := derived_speed(run.rows, origin)) is not None:
            panels["speed", speed.title] = speed
    for panel in panels.values():
        panel.curves = _most_telling(panel.curves)
    return sorted(panels.values(), key=_order)


def place_of(name: str, mode: str, train: Iterable[str] = ()) -> tuple[str, str, str]:
    """Returns the picture of a metric, its name in the legend, and the set that colours it.

    Args:
        name: As in a row.
        mode: The set of the row.
        train: Metrics of training, by which a validation set's prefix is known.

    Example:
        >>> place_of("loss_mean", "train"), place_of("books_loss", "val", ["loss"])
        (('loss', 'train', 'train'), ('loss', 'val books', 'val'))
    """
    norm = _NORM.fullmatch(_base(name, mode))
    if norm is not None and norm["path"]:
        kind = _base(name, mode).partition("/")[0]
        return f"{kind} by parameter", norm["path"][1:], "many"
    base = _base(name, mode)
    if base == "time_s":
        return f"{mode}_time_s", mode, mode
    if mode not in ("train", "train_epoch"):
        for metric in sorted(train, key=len, reverse=True):
            if base.endswith(f"_{metric}"):
                return metric, f"{mode} {base.removesuffix(f'_{metric}')}", mode
    return base, mode, mode


def group_of(title: str) -> str:
    """Returns where a picture belongs.

    Example:
        >>> group_of("loss"), group_of("grad_norm"), group_of("tokens_per_s")
        ('metrics', 'optimization', 'speed')
    """
    if _SPEED.fullmatch(title):
        return "speed"
    if _RATE.fullmatch(title) or _NORM.fullmatch(title) or title.endswith("norm by parameter"):
        return "optimization"
    return "intermediates" if "/" in title else "metrics"


def thinned(values: Sequence[float | None], most: int = MOST_POINTS) -> list[int]:
    """Returns the points of a curve that are kept: of each stretch its smallest and its largest.

    The first and the last are kept, and of values that are None one in each stretch.

    Example:
        >>> thinned([0.0, 5.0, 1.0, 1.0, -3.0, 1.0, 1.0, 1.0], most=4)
        [0, 1, 4, 7]
    """
    count = len(values)
    if count <= most:
        return list(range(count))
    kept = {0, count - 1}
    stretches = max((most - 2) // 2, 1)
    for number in range(stretches):
        first, last = number * count // stretches, (number + 1) * count // stretches
        numbers = [(value, i) for i in range(first, last) if (value := values[i]) is not None]
        if numbers:
            kept |= {min(numbers)[1], max(numbers)[1]}
        if len(numbers) < last - first:
            kept.add(next(i for i in range(first, last) if values[i] is None))
    return sorted(kept)


def thin(panels: Sequence[Panel]) -> bool:
    """Keeps so many points of each curve that a page stays small; says whether any were left out.

    Args:
        panels: Their curves are changed.
    """
    curves = sum(len(panel.curves) for panel in panels)
    most = max(min(MOST_POINTS, MOST_POINTS_IN_ALL // max(curves, 1)), 50)
    shorter = False
    for panel in panels:
        for index, curve in enumerate(panel.curves):
            kept = thinned(curve.values, most)
            if len(kept) < len(curve.values):
                shorter = True
                panel.curves[index] = replace(
                    curve,
                    steps=[curve.steps[i] for i in kept],
                    hours=[curve.hours[i] for i in kept],
                    values=[curve.values[i] for i in kept],
                )
    return shorter


def began(run: RunRecord) -> datetime | None:
    """Returns when a run was started first, or its first row was written."""
    times = [line.time for line in run.lines[:1]]
    times += [row.time for row in (*run.rows[:1], *run.superseded[:1]) if row.time]
    return min(times, default=None)


def derived_speed(rows: Sequence[Row], origin: datetime | None) -> Panel | None:
    """Returns the steps per second by the times of the rows; None where these do not tell."""
    timed = [(row.time, row.step) for row in rows if row.mode == "train" and row.time]
    if len(timed) < 3 or origin is None:
        return None
    span_s = (timed[-1][0] - timed[0][0]).total_seconds()
    curve = Curve("train", "train", [], [], [])
    since = timed[0]
    for time, step in timed[1:]:
        seconds = (time - since[0]).total_seconds()
        if seconds < max(1.0, span_s / 300):
            continue
        if step > since[1]:
            curve.steps.append(step)
            curve.hours.append((time - origin).total_seconds() / 3600)
            curve.values.append((step - since[1]) / seconds)
        since = (time, step)
    return Panel("steps_per_s, pauses included", "speed", [curve]) if curve.values else None


def _base(name: str, mode: str) -> str:
    return name.removesuffix("_mean") if mode == "train" else name


def _points(rows: Sequence[Row]) -> dict[tuple[str, str], list[tuple[Row, float]]]:
    found: dict[tuple[str, str], list[tuple[Row, float]]] = {}
    for row in rows:
        for name, value in row.metrics.items():
            found.setdefault((row.mode, name), []).append((row, value))
    return found


def _curve(
    name: str,
    mode: str,
    points: Sequence[tuple[Row, float]],
    origin: datetime | None,
    left: bool,
) -> Curve:
    points = sorted(points, key=lambda point: point[0].step)
    hours = [
        None if origin is None or row.time is None else (row.time - origin).total_seconds() / 3600
        for row, _ in points
    ]
    values = [value if math.isfinite(value) else None for _, value in points]
    return Curve(name, mode, [row.step for row, _ in points], hours, values, left)


def _most_telling(curves: list[Curve]) -> list[Curve]:
    if len(curves) <= MOST_CURVES:
        return curves
    last = lambda c: next((v for v in reversed(c.values) if v is not None), -math.inf)  # noqa: E731
    kept = sorted(curves, key=last, reverse=True)[:MOST_CURVES]
    return [curve for curve in curves if curve in kept]


def _order(panel: Panel) -> tuple[int, int, int, str]:
    first = _FIRST.index(panel.title) if panel.title in _FIRST else len(_FIRST)
    both = len({curve.mode for curve in panel.curves}) < 2  # what was validated comes first
    return GROUPS.index(panel.group), first, int(both), panel.title
