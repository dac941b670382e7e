"""Which samples make a batch? Those of one stream of all epochs, in whatever process it is read."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from xtrainer.errors import LoaderError
from xtrainer.types import BatchLike, PyTree

ENDLESS = 2**48
"""Batches of a stream without end, since sources have a length."""


@dataclass(frozen=True)
class BatchPlan:
    """Which samples of the stream of all epochs make a batch.

    Example:
        >>> [list(BatchPlan(3, 2, drop_remainder=False).batch(0, n)) for n in range(3)]
        [[0, 1], [2], [3, 4]]
    """

    num_samples: int
    batch_size: int
    drop_remainder: bool

    @property
    def per_epoch(self) -> int:
        """The number of batches of a whole epoch."""
        return self._count(self.num_samples)

    def batch(self, position: int, number: int) -> range:
        """Returns the samples of a batch, counted from the one at or after a position."""
        epoch, offset = divmod(position, self.num_samples)
        left = self._count(self.num_samples - offset)
        if number < left:
            first = position + number * self.batch_size
        else:
            more, number = divmod(number - left, self.per_epoch)
            epoch += 1 + more
            first = epoch * self.num_samples + number * self.batch_size
        return range(first, min(first + self.batch_size, (epoch + 1) * self.num_samples))

    def _count(self, samples: int) -> int:
        return (samples + (0 if self.drop_remainder else self.batch_size - 1)) // self.batch_size


@dataclass(frozen=True)
class SampleStream:
    """The endless stream of samples.

    Attributes:
        dataset: The samples by their number in the stream.
        order: The index in the source by that number; None: the number itself.
        num_samples: Samples of an epoch.
    """

    dataset: Any
    order: Any
    num_samples: int

    def __getitem__(self, number: int) -> PyTree:
        """Returns a sample.

        Raises:
            LoaderError: If it cannot be read, or there is none.
        """
        found, error = "None (as a filter gives it)", None
        try:
            sample = self.dataset[number]
        except Exception as failure:  # of one class, since not all can leave a worker process
            found, error = f"{type(failure).__name__}: {failure}", failure
        else:
            if sample is not None:
                return sample
        index = number if self.order is None else self.order[number]
        raise LoaderError(
            f"Found {found} on reading sample {index % self.num_samples} of the source (sample "
            f"{number} of the stream), expected a pytree of arrays. Make the source and the "
            "transforms give one for every index; leave samples out of the source beforehand."
        ) from error


@dataclass(frozen=True)
class PartReader:
    """What makes a part of a batch."""

    samples: SampleStream
    collate: Callable[[list[Any]], BatchLike]

    def read(self, plan: BatchPlan, start: int, rows: slice, number: int = 0) -> BatchLike:
        """Returns the rows of a batch, counted from the one at a position.

        Raises:
            LoaderError: If a sample cannot be read, or the samples make no batch.
        """
        batch = plan.batch(start, number)
        part = batch[rows]
        if len(part) == 0:  # the shapes of the others, without rows
            return jax.tree.map(lambda leaf: np.asarray(leaf)[:0], self._make(batch[:1]))
        return self._make(part)

    def _make(self, numbers: range) -> BatchLike:
        samples = [self.samples[number] for number in numbers]
        try:
            return self.collate(samples)
        except Exception as error:
            raise LoaderError(
                f"Found {type(error).__name__}: {error} on making a batch of the samples "
                f"{numbers[0]} to {numbers[-1]} of the stream, expected samples of one structure "
                "and shape. Make the transforms give that, or pass collate."
            ) from error


class PartSource:
    """The part of every batch from a position on, by its number: a source for Grain."""

    def __init__(self, reader: PartReader, plan: BatchPlan, start: int, rows: slice) -> None:
        self._reader = reader
        self._plan = plan
        self._start = start
        self._rows = rows

    def __len__(self) -> int:
        """Returns a number that no run reaches."""
        return ENDLESS

    def __getitem__(self, number: int) -> BatchLike:
        """Returns the part of a batch, with no rows where the batch ends before."""
        return self._reader.read(self._plan, self._start, self._rows, number)


def stack(samples: list[PyTree]) -> BatchLike:
    """Returns the samples as one batch, each leaf with a new first axis.

    Example:
        >>> stack([{"inputs": 1}, {"inputs": 2}])
        {'inputs': array([1, 2])}
    """
    return jax.tree.map(lambda *leaves: np.stack(leaves), *samples)
