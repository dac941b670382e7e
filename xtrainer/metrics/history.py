"""Which metrics has a run logged so far? The rows of every set, in memory and in checkpoints."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from xtrainer.errors import CheckpointError, MetricError, did_you_mean
from xtrainer.json_text import row_from_json, row_to_json
from xtrainer.types import JSON, HostMetrics

MAX_ROWS = 10_000
"""Rows of a set that are kept in memory; the newest ones."""
MAX_NUMBERS = 1_000_000
"""Numbers in those rows, at most, but for the newest row: some have thousands, as norms."""
MAX_SAVED_ROWS = 1_000
"""Rows of a set that a checkpoint holds; the newest ones."""
MAX_SAVED_NUMBERS = 20_000
"""Numbers in those rows, at most, but for the newest row: each save writes them all."""
_SETS = ("train", "train_epoch", "val", "test")
_NOT_SAVED = "train"


class Row(NamedTuple):
    """What was logged of one set at one step.

    Attributes:
        step: The last step that it tells of, from 1.
        epoch: Of that step, from 1.
        metrics: Floats by name.
    """

    step: int
    epoch: int
    metrics: HostMetrics


class History(Mapping[str, list[Row]]):
    """The rows of a run by the name of their set, oldest first: what its loggers were given.

    The sets are ``train`` (a row every ``log_every_n_steps``), ``train_epoch``, ``val`` and
    ``test``. The newest ``MAX_ROWS`` of each are kept, on all processes and without any logger too.
    A checkpoint holds the newest ``MAX_SAVED_ROWS`` of each but ``train``; after a resume older
    ones, and those of ``train``, come from ``metrics.jsonl`` when they are asked for, where the run
    has a ``FileLoggerConfig``. Of rows with very many metrics fewer are kept and saved.

    Args:
        read_earlier: Returns the rows of a set that were logged before this process, and perhaps
            newer ones.

    Example:
        >>> history = History()
        >>> history.add("val", 10, 1, {"loss": 0.5})
        >>> history.add("val", 20, 2, {"loss": 0.25})
        >>> history["val"][-1].metrics["loss"], history.series("val", "loss")
        (0.25, {10: 0.5, 20: 0.25})
        >>> history
        History(val: 2 rows)
    """

    def __init__(self, read_earlier: Callable[[str], Iterable[Row]] | None = None) -> None:
        self._read = read_earlier
        self._rows: dict[str, deque[Row]] = {}
        self._before: dict[str, int] = {}  # rows of steps before this one may be in files
        self._earlier: dict[str, list[Row]] = {}  # those, where they were read

    def add(self, mode: str, step: int, epoch: int, metrics: HostMetrics) -> None:
        """Adds a row; it takes the place of one of the same step.

        Args:
            mode: The set.
            step: Not smaller than that of the newest row of the set.
            epoch: Of the step.
            metrics: Floats; they are copied.
        """
        rows = self._rows.setdefault(mode, deque(maxlen=MAX_ROWS))
        if rows and rows[-1].step == step:
            rows.pop()
        rows.append(Row(step, epoch, dict(metrics)))
        if len(rows) * len(metrics) > MAX_NUMBERS:
            for _ in range(len(rows) - _num_newest(rows, MAX_ROWS, MAX_NUMBERS)):
                rows.popleft()

    def newest(self, mode: str) -> Row | None:
        """Returns the newest row of a set; None where there is none in memory."""
        rows = self._rows.get(mode)
        return rows[-1] if rows else None

    def series(self, mode: str, metric: str) -> dict[int, float]:
        """Returns one metric of a set by step, for a plot; rows without it are left out.

        A set without any rows gives ``{}``.

        Raises:
            MetricError: If the set has rows and none has the metric.
        """
        rows = self.get(mode, [])
        found = {row.step: row.metrics[metric] for row in rows if metric in row.metrics}
        if rows and not found:
            known = {name for row in rows for name in row.metrics}
            raise MetricError(
                f"history.series: no row of {mode!r} has the metric {metric!r}. "
                f"{did_you_mean(metric, known)}"
            )
        return found

    def __getitem__(self, mode: str) -> list[Row]:
        """Returns the rows of a set.

        Raises:
            KeyError: If there is none.
        """
        rows = [*self._from_files(mode), *self._rows.get(mode, ())][-MAX_ROWS:]
        if not rows:
            raise KeyError(mode)
        return rows

    def __iter__(self) -> Iterator[str]:
        """Returns the names of the sets that have rows."""
        names = dict.fromkeys([*_SETS, *self._rows])
        return (name for name in names if name in self)

    def __contains__(self, mode: object) -> bool:
        """Says whether a set has rows."""
        return isinstance(mode, str) and bool(self._rows.get(mode) or self._from_files(mode))

    def __len__(self) -> int:
        """Returns the number of sets that have rows."""
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        """Returns how many rows each set has."""
        return f"History({', '.join(f'{name}: {len(self[name])} rows' for name in self)})"

    def _from_files(self, mode: str) -> list[Row]:
        before = self._before.get(mode, 0)
        if self._read is None or before <= 1:
            return []
        if mode not in self._earlier:
            # By step: a row that a run has logged again counts as it was logged last.
            found = {row.step: row for row in self._read(mode) if row.step < before}
            self._earlier[mode] = [found[step] for step in sorted(found)]
        return self._earlier[mode]

    def to_json(self) -> JSON:
        """Returns what a checkpoint keeps of each set: its newest rows, and which may be in files.

        ``until`` is the step of the newest row, saved or not; those before ``before`` are not here.
        """
        saved: dict[str, JSON] = {}
        for mode in dict.fromkeys([*self._rows, *self._before]):
            rows, before = self._rows.get(mode) or (), self._before.get(mode, 0)
            until = rows[-1].step if rows else max(before - 1, 0)
            left_out = len(rows) if mode == _NOT_SAVED else len(rows) - _num_newest(rows)
            kept = list(itertools.islice(rows, left_out, None))
            if left_out:
                before = kept[0].step if kept else until + 1
            entries = [[row.step, row.epoch, row_to_json(row.metrics)] for row in kept]
            saved[mode] = {"until": until, "before": before, "rows": entries}
        return saved

    def restore(self, saved: Any, step: int, keep: bool) -> None:
        """Goes back to what a checkpoint holds; later rows are forgotten.

        Args:
            saved: What :meth:`to_json` returned then; None: the checkpoint is older than that.
            step: Of the checkpoint.
            keep: Whether it belongs to the same run, so that rows in memory, and in its files, are
                those before it.

        Raises:
            CheckpointError: If that is something else; then nothing is changed.
        """
        if saved is None:
            saved = {mode: {"until": step, "before": step + 1, "rows": []} for mode in _SETS}
        try:
            bounds = {str(m): (int(one["until"]), int(one["before"])) for m, one in saved.items()}
            rows = {
                str(mode): [Row(int(s), int(e), row_from_json(m)) for s, e, m in one["rows"]]
                for mode, one in saved.items()
            }
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(
                f"The history of metrics in the checkpoint cannot be read ({error!r}), expected "
                "what a save writes. Use another step."
            ) from error
        old, known = (self._rows, self._before) if keep else ({}, {})
        self._rows, self._before, self._earlier = {}, {}, {}
        for mode, (until, before) in bounds.items():
            found = rows[mode]
            first = found[0].step if found else until + 1
            mine = [row for row in old.get(mode, ()) if row.step < first]
            self._rows[mode] = deque([*mine, *found], maxlen=MAX_ROWS)
            if keep:
                self._before[mode] = known.get(mode, 0) if mine else before


def _num_newest(
    rows: Sequence[Row] | deque[Row], max_rows: int | None = None, max_numbers: int | None = None
) -> int:
    """Returns how many of the newest rows are within bounds, those of a save where None is given.

    The newest one always is.
    """
    max_rows = MAX_SAVED_ROWS if max_rows is None else max_rows
    max_numbers = MAX_SAVED_NUMBERS if max_numbers is None else max_numbers
    count = numbers = 0
    for row in reversed(rows):
        numbers += len(row.metrics)
        if count == max_rows or (count and numbers > max_numbers):
            break
        count += 1
    return count
