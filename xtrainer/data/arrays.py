"""How are arrays in memory read in batches? Shuffled per pass, from any saved position."""

import sys
from collections.abc import Iterator

import jax
import numpy as np

from xtrainer.counts import as_int, wanted_count
from xtrainer.data.batch import num_rows
from xtrainer.data.fingerprint import array_fingerprint
from xtrainer.data.shard import check_resize, shard_rows
from xtrainer.errors import LoaderError
from xtrainer.types import JSON, BatchLike, DataShard, PyTree

_STATE = {"pass", "batch", "batch_size"}


class ArrayLoader:
    """A loader over arrays in memory; every ``iter()`` is the next pass.

    Args:
        arrays: A pytree of NumPy arrays that share their first axis; batches are of the same tree.
        batch_size: Rows of a batch, over all processes; the last one of a pass may have fewer.
        shuffle: Whether each pass has an order of its own, given by ``seed`` and the pass.
        seed: Seed of the orders, >= 0.
        drop_last: Whether a last batch with fewer rows is left out.
        endless: Whether the next pass follows within the same ``iter()``.

    Raises:
        BatchError: If the arrays have different first axes.
        LoaderError: If the sizes are wrong or give no batch.

    Example:
        >>> loader = ArrayLoader({"inputs": np.arange(5)}, batch_size=2)
        >>> len(loader), [batch["inputs"].tolist() for batch in loader]
        (3, [[0, 1], [2, 3], [4]])
    """

    def __init__(
        self,
        arrays: PyTree,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        endless: bool = False,
    ) -> None:
        self.arrays: PyTree = jax.tree.map(np.asarray, arrays)
        self.num_examples: int = num_rows(self.arrays)
        if wanted_count(batch_size, 1) or wanted_count(seed, 0, sys.maxsize):
            raise LoaderError(
                f"Found batch_size={batch_size!r}, seed={seed!r}, expected whole numbers: "
                "batch_size >= 1, seed >= 0."
            )
        batch_size, seed = as_int(batch_size), as_int(seed)
        self.batch_size: int = batch_size
        """Rows of the batches of the pass under way."""
        self.shuffle = shuffle
        self.seed = seed
        self.drop_last = drop_last
        self.endless = endless
        self.num_batches: int = self._count(batch_size)
        if self.num_batches == 0:
            raise LoaderError(
                f"Found {self.num_examples} rows for batch_size={batch_size} and "
                f"drop_last={drop_last}, expected at least one batch. Give more rows, a smaller "
                "batch_size or drop_last=False."
            )
        self._shard = DataShard()
        self._rows = slice(0, batch_size)
        self._first_size = self._next_size = batch_size
        self._pass = 0
        self._batch = 0
        self._continue = True
        self._current: _ArrayIterator | None = None
        self._fingerprint = ""

    def __len__(self) -> int:
        """Returns the number of batches of a pass.

        Raises:
            TypeError: If the loader is endless.
        """
        if self.endless:
            raise TypeError("An endless ArrayLoader has no length.")
        return self.num_batches

    def __iter__(self) -> Iterator[BatchLike]:
        """Returns the batches of the next pass, or the rest of the one given to ``set_state``."""
        if not self._continue and self._batch > 0:
            self._pass, self._batch = self._pass + 1, 0
        self._continue = False
        if self._batch == 0:
            self._resize(self._next_size)
        self._current = _ArrayIterator(self, self._pass, self._batch)
        return self._current

    def set_shard(self, shard: DataShard) -> None:
        """Gives this part of each batch from the next one on, also in an ``iter()`` begun before.

        Length and positions stay those of whole batches: they are equal in all processes.

        Raises:
            LoaderError: If there is no such part, or the batch size does not divide into them.

        Example:
            >>> loader = ArrayLoader({"inputs": np.arange(5)}, batch_size=4)
            >>> loader.set_shard(DataShard(1, 2))
            >>> [batch["inputs"].tolist() for batch in loader]
            [[2, 3], []]
        """
        self._rows = shard_rows(shard, self.batch_size)
        self._shard = shard

    def set_batch_size(self, batch_size: int) -> None:
        """Gives batches of so many rows from the next pass on, see ``ResizableLoader``.

        Raises:
            LoaderError: If there are fewer rows, or the batch size does not divide into the parts
                of the processes; or if the loader is endless, which has no next pass.

        Example:
            >>> loader = ArrayLoader({"inputs": np.arange(4)}, batch_size=1)
            >>> loader.set_batch_size(2)
            >>> len(loader), [batch["inputs"].tolist() for batch in loader], len(loader)
            (4, [[0, 1], [2, 3]], 2)
        """
        sizes = (batch_size, self.batch_size, self.num_examples)
        check_resize(*sizes, self._shard, ends=not self.endless)
        self._next_size = as_int(batch_size)

    def _resize(self, batch_size: int) -> None:
        if batch_size != self.batch_size:
            self.num_batches = self._count(batch_size)
            self._rows = shard_rows(self._shard, batch_size)
            self.batch_size = self._next_size = batch_size

    def _count(self, batch_size: int) -> int:
        return (self.num_examples + (0 if self.drop_last else batch_size - 1)) // batch_size

    def for_evaluation(self) -> "ArrayLoader":
        """Returns a loader of all rows in their order, once, whose place is its own.

        Example:
            >>> loader = ArrayLoader({"inputs": np.arange(3)}, 2, shuffle=True, drop_last=True)
            >>> [batch["inputs"].tolist() for batch in loader.for_evaluation()]
            [[0, 1], [2]]
        """
        return ArrayLoader(self.arrays, self.batch_size)

    def fingerprint(self) -> str:
        """Returns what tells the arrays from others: their number of rows, and some of them.

        It is made when it is first asked for; see :func:`xtrainer.data.array_fingerprint`.
        """
        if not self._fingerprint:
            self._fingerprint = f"{self.num_examples} rows, {array_fingerprint(self.arrays)}"
        return self._fingerprint

    def get_state(self) -> JSON:
        """Returns the pass, and how many of its batches the newest iterator has given.

        And the size of its batches, where that is not the one the loader was made with.
        """
        state = {"pass": self._pass, "batch": self._batch}
        grown = self.batch_size != self._first_size
        return {**state, "batch_size": self.batch_size} if grown else state

    def set_state(self, state: JSON) -> None:
        """Makes the next ``iter()`` go on where ``get_state`` was called.

        Raises:
            LoaderError: If the state is not of this loader.
        """
        good = isinstance(state, dict) and set(state) | {"batch_size"} == _STATE
        values = {"batch_size": self._first_size, **state} if good else {}
        good = good and all(type(value) is int and value >= 0 for value in values.values())
        size = values["batch_size"] if good else self._first_size
        good = good and 0 < size <= max(self.num_examples, self._first_size)
        good = good and values["batch"] <= self._count(size)
        if not good:
            raise LoaderError(
                f"Found the loader state {state!r}, expected {{'pass': >= 0, 'batch': 0 to "
                f"{self._count(self._first_size)}}}. Use the arrays and the batch_size of the run "
                "that saved it."
            )
        self._resize(size)
        self._next_size = size
        self._pass, self._batch = state["pass"], state["batch"]
        self._continue = True
        self._current = None  # an iterator from before must not move the position any more

    def _order(self, pass_index: int) -> np.ndarray | None:
        if not self.shuffle:
            return None
        return np.random.default_rng((self.seed, pass_index)).permutation(self.num_examples)

    def _take(self, order: np.ndarray | None, batch: int) -> BatchLike:
        first = batch * self.batch_size
        rows = slice(first + self._rows.start, first + self._rows.stop)
        index = rows if order is None else order[rows]
        return jax.tree.map(lambda leaf: leaf[index], self.arrays)


class _ArrayIterator:
    """The batches of one pass, of all that follow where the loader is endless."""

    def __init__(self, loader: ArrayLoader, pass_index: int, batch: int) -> None:
        self._loader = loader
        self._pass = pass_index
        self._batch = batch
        self._order = loader._order(pass_index)

    def __iter__(self) -> "_ArrayIterator":
        return self

    def __next__(self) -> BatchLike:
        loader = self._loader
        if self._batch == loader.num_batches:
            if not loader.endless:
                raise StopIteration
            self._pass, self._batch = self._pass + 1, 0
            self._order = loader._order(self._pass)
        batch = loader._take(self._order, self._batch)
        self._batch += 1
        if loader._current is self:
            loader._pass, loader._batch = self._pass, self._batch
        return batch
