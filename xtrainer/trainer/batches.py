"""In which shape does a batch reach the compiled step? Checked, padded and placed."""

from collections.abc import Hashable

import jax
import numpy as np
from jax.sharding import NamedSharding

from xtrainer.data import batch_signature, batch_spec, describe_mismatch, num_rows, pad_rows
from xtrainer.errors import BatchError
from xtrainer.parallel import BatchLayout, place
from xtrainer.step import PlacedBatch
from xtrainer.types import BatchLike, PyTree

_SMALL_BYTES = 2**15


def feeds_host_batches(layout: BatchLayout) -> bool:
    """Says whether small host batches go into a compiled step as they are.

    On a CPU that costs nothing, where placing them first takes as long as a small step. Elsewhere,
    and with several processes, a thread places all batches.
    """
    alone = jax.process_count() == 1
    return alone and all(device.platform == "cpu" for device in layout.mesh.devices.flat)


class _Kind:
    """Stands for all prepared batches of one structure, shape and dtype."""


class _Seen:
    """What a batch was like that was prepared before, and what became of it."""

    def __init__(
        self,
        batch: BatchLike,
        mask: jax.Array,
        rows: int,
        examples: int,
        kind: _Kind,
        place: NamedSharding | None,
    ) -> None:
        leaves, self._structure = jax.tree.flatten(batch)
        self._leaves = [(type(leaf), leaf.shape, leaf.dtype) for leaf in leaves]
        self.mask = mask
        self.rows = rows
        self.examples = examples
        self.kind = kind
        self.place = place

    def is_like(self, batch: BatchLike) -> bool:
        """Says whether a batch is of this kind, so that the same becomes of it."""
        try:
            leaves = self._structure.flatten_up_to(batch)
            for leaf, (kind, shape, dtype) in zip(leaves, self._leaves, strict=True):
                if type(leaf) is not kind or leaf.shape != shape or leaf.dtype != dtype:
                    return False
        except (TypeError, ValueError, AttributeError):  # another structure, or no array
            return False
        return True


def _signature(batch: BatchLike) -> Hashable:
    leaves, structure = jax.tree.flatten(batch)
    return structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)


def _is_small_and_plain(batch: BatchLike) -> bool:
    """Says whether a batch is of few NumPy numbers, in dtypes that a device has."""
    leaves = jax.tree.leaves(batch)
    plain = all(
        type(leaf) is np.ndarray and jax.dtypes.canonicalize_dtype(leaf.dtype) == leaf.dtype
        for leaf in leaves
    )
    return plain and sum(leaf.nbytes for leaf in leaves) <= _SMALL_BYTES


class BatchPreparer:
    """Makes global arrays of one shape from batches whose last one may be smaller.

    A smaller batch is padded to the rows of the compiled step where loss and metrics can mask
    padding out; otherwise it keeps its shape, which compiles once more, and is held whole by every
    device if its rows do not divide.

    Args:
        layout: Mesh and batch axes.
        paddable: Whether padding can be masked out.
        accumulate_steps: Micro-batches of a full training batch; None for evaluation, where any
            number of rows is taken.
        expected: Shapes that every batch must have, but for its rows; None: any.

    Attributes:
        feeds_host: Whether small host batches are left as they are, see
            :func:`feeds_host_batches`.
    """

    def __init__(
        self,
        layout: BatchLayout,
        paddable: bool,
        accumulate_steps: int | None = None,
        expected: PyTree | None = None,
    ) -> None:
        self._layout = layout
        self._shard = layout.shard
        self._paddable = paddable
        self._accumulate_steps = accumulate_steps
        self._expected = None if expected is None else batch_spec(expected)
        self._full_rows = 0
        self._rows: dict[Hashable, int] = {}
        self._masks: dict[tuple[int, int], jax.Array] = {}
        self.feeds_host = feeds_host_batches(layout)
        self._newest: _Seen | None = None  # the batch that came last
        self._kinds: dict[Hashable, _Kind] = {}
        self._filler: PyTree | None = None  # a row of host arrays, for batches without any

    @property
    def paddable(self) -> bool:
        """Whether padding can be masked out."""
        return self._paddable

    def begin(self, full_rows: int, like: PyTree | None = None) -> None:
        """Forgets what batches were seen.

        Args:
            full_rows: Rows that this process gives to a full batch, where the first to come may be
                the smaller last one of a pass; 0: not known. Several processes give one number.
            like: Shapes of a batch, where this process may have none of its own.
        """
        self._full_rows = full_rows
        self._rows.clear()
        self._newest = None
        self._filler = None
        if like is not None:
            self._filler = jax.tree.map(lambda x: np.zeros((1, *x.shape[1:]), x.dtype), like)

    def check_first(self, batch: BatchLike) -> None:
        """Checks the first batch of a run, which may be the last of a pass.

        Raises:
            BatchError: As :meth:`check_full` does.
        """
        self._check_leaves(batch)
        if num_rows(batch) >= self._full_rows:
            self.check_full(batch)

    def check_full(self, batch: BatchLike) -> None:
        """Checks a batch of full size for training.

        Raises:
            BatchError: If its leaves are not those expected, or its rows do not divide into
                micro-batches and over the devices.
        """
        self._check_leaves(batch)
        rows = num_rows(batch) * self._shard.count
        pieces, shards = self._accumulate_steps or 1, self._layout.num_shards
        if rows % pieces:
            raise BatchError(
                f"A batch of {rows} rows does not divide into gradient_accumulate_steps={pieces} "
                "micro-batches of one size. Change the batch size or the number of steps."
            )
        if rows % shards:
            raise BatchError(
                f"A batch of {rows} rows does not divide over {shards} devices (mesh axes "
                f"{dict(self._layout.mesh.shape)}). Change the batch size or the mesh."
            )

    def __call__(self, batch: BatchLike) -> PlacedBatch:
        """Returns the batch on the devices.

        Raises:
            BatchError: For a batch that the compiled step cannot take.
        """
        newest = self._newest
        if newest is not None and newest.is_like(batch):  # as nearly all are: nothing to find out
            data = batch if newest.place is None else place(batch, newest.place, newest.rows)
            return PlacedBatch(data, newest.mask, newest.rows, newest.examples, newest.kind)
        self._check_leaves(batch)
        examples = num_rows(batch)
        if self._shard.count > 1:
            rows = self._part_rows(examples)
            if examples:
                self._filler = jax.tree.map(lambda x: np.array(x[-1:]), batch)
            elif self._filler is not None:
                batch = self._filler
        else:
            rows = self._target_rows(batch, examples)
        return self._placed(batch, examples, rows)

    def empty(self) -> PlacedBatch:
        """Returns a batch of padding, for a process that has no batch while others have."""
        return self._placed(self._filler, 0, self._part_rows(self._full_rows))

    def _placed(self, batch: BatchLike, examples: int, rows: int) -> PlacedBatch:
        given = batch
        if rows != num_rows(batch):
            batch, _ = pad_rows(batch, rows)
        count = self._shard.count
        sharding = self._layout.sharding(rows * count)
        mask = self._masks.get((examples, rows))
        if mask is None:
            valid = np.arange(rows) < examples
            mask = self._masks[examples, rows] = place(valid, sharding, rows * count)
        to_place = None if self.feeds_host and _is_small_and_plain(batch) else sharding
        data = batch if to_place is None else place(batch, to_place, rows * count)
        kind = self._kinds.setdefault((_signature(batch), to_place is None), _Kind())
        if given is batch and self._shard.count == 1:
            self._newest = _Seen(batch, mask, rows, examples, kind, to_place)
        return PlacedBatch(data, mask, rows * count, examples * count, kind)

    def _part_rows(self, examples: int) -> int:
        """Returns the rows that this process gives to every batch; the others give as many."""
        full, parts = self._full_rows, self._layout.num_shards // self._shard.count
        if examples > full or (examples < full and not self._paddable):
            raise BatchError(
                f"Found a batch of {examples} rows from this process, expected {full} as in the "
                f"first batch of the run, so that the {self._shard.count} processes give parts of "
                "one size. "
                + (
                    "Make every later batch at most as large."
                    if examples > full
                    else "Padding cannot be masked out of this loss (it is a scalar, or the model "
                    "keeps batch statistics): drop the last batch of a pass, or return one value "
                    "per example."
                )
            )
        return -(-full // parts) * parts

    def _check_leaves(self, batch: BatchLike) -> None:
        mismatch = None if self._expected is None else describe_mismatch(self._expected, batch)
        if mismatch:
            raise BatchError(
                f"A training batch differs from the example batch of the trainer: {mismatch}. Make "
                "the loader give one kind of batch, or build the trainer with that kind."
            )

    def _target_rows(self, batch: BatchLike, examples: int) -> int:
        signature = batch_signature(batch)
        full = self._rows.get(signature, 0)
        if examples > full:  # the first one, or a larger one: the new full size
            full = max(examples, self._full_rows)
            if examples == full and self._accumulate_steps is not None:
                self.check_full(batch)
            self._rows[signature] = full
        shards = self._layout.num_shards
        return -(-full // shards) * shards if self._paddable else examples
