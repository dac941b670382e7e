"""Which batch sizes are tried, in which order, and which of them is the best?"""

from collections.abc import Callable
from dataclasses import dataclass

from xtrainer.errors import BatchError


@dataclass(frozen=True)
class BatchTrial:
    """What came of trying one batch size.

    Attributes:
        rows: Rows of the batch, over all devices and processes.
        memory_bytes: What the compiler says that the step takes of one device; None: not known.
        examples_per_s: Rows trained on in a second; None where no step was run.
        fits: Whether steps with this batch can be run.
        reason: Why not; empty where it fits.
    """

    rows: int
    memory_bytes: int | None = None
    examples_per_s: float | None = None
    fits: bool = True
    reason: str = ""


@dataclass(frozen=True)
class BatchSizeTable:
    """All sizes that were tried, in the order in which they were; ``str`` gives a table.

    Attributes:
        trials: The sizes.

    Example:
        >>> table = BatchSizeTable((BatchTrial(8, 2**20, 100.0), BatchTrial(16, 2**21, 150.0)))
        >>> table.best.rows
        16
        >>> print(table)
          batch  bytes on a device  examples/s
              8          1,048,576       100.0
             16          2,097,152       150.0  best
    """

    trials: tuple[BatchTrial, ...]

    @property
    def best(self) -> BatchTrial:
        """The fastest size that fits; of equally fast ones the smallest.

        Raises:
            BatchError: If none fits; with the table and what helps.
        """
        found = self._best()
        if found is not None:
            return found
        least = min((trial.rows for trial in self.trials), default=0)
        raise BatchError(
            f"No batch size fits, down to {least} rows:\n{self}\nWhat helps: more devices on the "
            "fsdp axis, ParallelConfig(remat=[...]), bfloat16, shorter rows; and, where a smaller "
            "batch is possible, a smaller example batch or a larger halving_limit."
        )

    def _best(self) -> BatchTrial | None:
        fitting = [trial for trial in self.trials if trial.fits]
        return max(fitting, key=lambda one: (one.examples_per_s or 0.0, -one.rows), default=None)

    def __str__(self) -> str:
        best = self._best()
        lines = [f"{'batch':>7}  {'bytes on a device':>17}  {'examples/s':>10}"]
        for one in self.trials:
            taken = "?" if one.memory_bytes is None else f"{one.memory_bytes:,}"
            speed = "-" if one.examples_per_s is None else f"{one.examples_per_s:,.1f}"
            note = "best" if one is best else one.reason
            lines.append(f"{one.rows:>7}  {taken:>17}  {speed:>10}  {note}".rstrip())
        return "\n".join(lines)


def find_batch_size(
    try_size: Callable[[int], BatchTrial],
    first: int,
    unit: int,
    largest: int | None,
    max_trials: int = 20,
    halving_limit: int = 3,
    on_improvement: Callable[[BatchTrial], None] | None = None,
) -> BatchSizeTable:
    """Returns what came of trying batch sizes: doubled while they fit, else halved until one does.

    Args:
        try_size: Tries a number of rows.
        first: The rows to begin with.
        unit: Every size is a multiple of it; ``first`` and ``largest`` are rounded down to one.
        largest: The most rows, which are tried last; None: any number.
        max_trials: Sizes that are tried at most.
        halving_limit: How often a size that does not fit is halved at most.
        on_improvement: Called with each trial that is better than all before it.

    Raises:
        BatchError: If ``largest`` is less than ``unit``.

    Example:
        >>> fits = lambda rows: BatchTrial(rows, examples_per_s=rows, fits=rows < 50)
        >>> [trial.rows for trial in find_batch_size(fits, 16, 4, 1000).trials]
        [16, 32, 64]
    """
    if largest is not None and largest < unit:
        raise BatchError(
            f"Found at most {largest} rows for a batch, expected {unit} or a multiple of it: each "
            "device needs a row of each micro-batch. Use fewer devices for the data, fewer "
            "gradient_accumulate_steps, more data, or a larger max_batch_size."
        )
    most = None if largest is None else largest // unit * unit
    rows = max(first // unit * unit, unit)
    rows = rows if most is None else min(rows, most)
    table, halvings = BatchSizeTable(()), 0
    while len(table.trials) < max_trials:
        before = table._best()
        trial = try_size(rows)
        table = BatchSizeTable((*table.trials, trial))
        if on_improvement is not None and table._best() is not before:
            on_improvement(trial)
        if trial.fits:
            if halvings or rows == most:
                break  # what is larger does not fit, or may not be
            rows = rows * 2 if most is None else min(rows * 2, most)
        else:
            if before is not None or rows == unit or halvings == halving_limit:
                break
            rows, halvings = max(rows // 2 // unit * unit, unit), halvings + 1
    return table
