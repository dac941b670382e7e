"""Which images does the model read? The handwritten digits that scikit-learn ships."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from xtrainer.data import shard_rows
from xtrainer.errors import LoaderError, require
from xtrainer.types import DataShard

Batch = dict[str, np.ndarray]

SPLIT_SEED = 0
"""Decides which image belongs to which set; fixed, so that every run is tested on the same ones."""

HELD_OUT = 270
"""Images in each of the sets for validation and test."""

TRAIN_SIZE = 1257
"""Images in the training set."""


def load_digits() -> dict[str, Batch]:
    """Returns the 1797 images of 8 x 8 pixels as ``train`` (1257), ``val`` and ``test`` (270 each).

    A set holds ``inputs``, float32 ``[count, 8, 8, 1]`` of mean 0 and deviation 1 over the training
    images, and ``targets``, int32 ``[count]``.

    Raises:
        MissingDependencyError: If scikit-learn is not installed.
    """
    digits = require("sklearn.datasets", "experiments").load_digits()
    images = digits.images.astype(np.float32)[..., None]
    labels = digits.target.astype(np.int32)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(images))
    parts = dict(
        zip(("val", "test", "train"), np.split(order, [HELD_OUT, 2 * HELD_OUT]), strict=True)
    )
    mean, deviation = images[parts["train"]].mean(), images[parts["train"]].std()
    images = (images - mean) / deviation
    return {name: {"inputs": images[at], "targets": labels[at]} for name, at in parts.items()}


class ImageLoader:
    """Batches of a set of images; each iteration is a new pass, or what ``set_state`` left of one.

    Args:
        examples: Arrays of one length.
        batch_size: Examples in a batch, over all processes.
        shuffle_seed: Draws a new order for each pass, and leaves out the examples that do not fill
            a batch; None keeps the order and every example.

    Raises:
        LoaderError: If there are fewer examples than a pass needs.
    """

    def __init__(self, examples: Batch, batch_size: int, shuffle_seed: int | None = None) -> None:
        self.examples = examples
        self.batch_size = batch_size
        self.shuffle_seed = shuffle_seed
        self.size = len(next(iter(examples.values())))
        self.epoch = 0
        self.position = 0
        self._resumed = False
        self._rows = slice(0, batch_size)
        if len(self) == 0:
            raise LoaderError(
                f"Found {self.size} examples, expected at least batch_size={batch_size}. "
                "Lower batch_size."
            )

    def __len__(self) -> int:
        """Returns the number of batches in a pass."""
        if self.shuffle_seed is None:
            return -(-self.size // self.batch_size)
        return self.size // self.batch_size

    def __iter__(self) -> Iterator[Batch]:
        """Returns an iterator over the batches of a pass."""
        if self.position and not self._resumed:  # the pass before was left early
            self.epoch, self.position = self.epoch + 1, 0
        self._resumed = False
        return self._pass(self.epoch, self.position)

    def _pass(self, epoch: int, start: int) -> Iterator[Batch]:
        order = self._order()
        for number in range(start, len(self)):
            self.position = number + 1
            chosen = order[number * self.batch_size : (number + 1) * self.batch_size]
            yield {name: array[chosen[self._rows]] for name, array in self.examples.items()}
        self.epoch, self.position = epoch + 1, 0

    def _order(self) -> np.ndarray:
        if self.shuffle_seed is None:
            return np.arange(self.size)
        return np.random.default_rng((self.shuffle_seed, self.epoch)).permutation(self.size)

    def set_shard(self, shard: DataShard) -> None:
        """Gives this part of each batch from the next one on, none where a batch ends before.

        Raises:
            LoaderError: If the batch size does not divide into the parts.
        """
        self._rows = shard_rows(shard, self.batch_size)

    def example(self) -> Batch:
        """Returns a whole batch of the usual size, and leaves the position where it is."""
        return {name: array[: self.batch_size] for name, array in self.examples.items()}

    def get_state(self) -> dict[str, Any]:
        """Returns the position: passes completed, and batches read of the one after."""
        return {"epoch": self.epoch, "next_batch": self.position}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues at a position that :meth:`get_state` gave."""
        self.epoch, self.position = int(state["epoch"]), int(state["next_batch"])
        self._resumed = True


class Examples:
    """A set of images one by one, as Grain reads them.

    Args:
        examples: Arrays of one length.
    """

    def __init__(self, examples: Batch) -> None:
        self.examples = examples

    def __len__(self) -> int:
        """Returns the number of examples."""
        return len(next(iter(self.examples.values())))

    def __getitem__(self, index: int) -> Batch:
        """Returns one example; its arrays have no batch axis."""
        return {name: array[index] for name, array in self.examples.items()}
