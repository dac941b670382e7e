"""In which shape does a batch reach the compiled step? Checked, padded and placed."""

from collections.abc import Hashable

import jax
import numpy as np

from xtrainer.data import batch_signature, batch_spec, describe_mismatch, num_rows, pad_rows
from xtrainer.errors import BatchError
from xtrainer.parallel import BatchLayout, place
from xtrainer.step import PlacedBatch
from xtrainer.types import BatchLike, PyTree


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
    """

    def __init__(
        self,
        layout: BatchLayout,
        paddable: bool,
        accumulate_steps: int | None = None,
        expected: PyTree | None = None,
    ) -> None:
        self._layout = layout
        self._paddable = paddable
        self._accumulate_steps = accumulate_steps
        self._expected = None if expected is None else batch_spec(expected)
        self._full_rows = 0
        self._rows: dict[Hashable, int] = {}
        self._masks: dict[tuple[int, int], jax.Array] = {}

    def begin(self, full_rows: int) -> None:
        """Forgets what batches were seen.

        Args:
            full_rows: Rows of a full batch, where the first to come may be the smaller last one of
                a pass; 0: not known.
        """
        self._full_rows = full_rows
        self._rows.clear()

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
        rows, pieces, shards = num_rows(batch), self._accumulate_steps or 1, self._layout.num_shards
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
        self._check_leaves(batch)
        examples = num_rows(batch)
        rows = self._target_rows(batch, examples)
        if rows != examples:
            batch, _ = pad_rows(batch, rows)
        sharding = self._layout.sharding(rows)
        mask = self._masks.get((examples, rows))
        if mask is None:
            mask = self._masks[examples, rows] = place(np.arange(rows) < examples, sharding)
        return PlacedBatch(place(batch, sharding), mask, rows, examples)

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
