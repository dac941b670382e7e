"""How does a ragged last batch get the compiled shape? By valid rows that are masked out."""

from typing import Any

import jax
import numpy as np

from xtrainer.data.batch import num_rows
from xtrainer.errors import BatchError
from xtrainer.types import BatchLike


def row_mask(num_valid: int, rows: int) -> np.ndarray:
    """Returns ``bool[rows]``, True for the first ``num_valid``.

    Example:
        >>> row_mask(2, 4).tolist()
        [True, True, False, False]
    """
    return np.arange(rows) < num_valid


def pad_rows(batch: BatchLike, rows: int) -> tuple[BatchLike, np.ndarray]:
    """Returns the batch with ``rows`` rows, in NumPy, and which of them are real.

    The last row is repeated, so that padding is as valid as the data: no NaN, no unknown label.
    A batch that has its rows already is returned as it is.

    Args:
        batch: Leaves from NumPy or JAX; those on a device are fetched where padding is needed.
        rows: The number of rows to return.

    Raises:
        BatchError: If the batch has no rows, or more than ``rows``.

    Example:
        >>> padded, mask = pad_rows({"inputs": np.array([1, 2])}, 3)
        >>> padded["inputs"].tolist(), mask.tolist()
        ([1, 2, 2], [True, True, False])
    """
    found = num_rows(batch)
    if found == 0:
        raise BatchError(
            "Found a batch with 0 rows, expected at least one. Make the loader skip empty batches."
        )
    if found > rows:
        raise BatchError(
            f"Found a batch with {found} rows, expected at most {rows}, the compiled shape. "
            "Make the first batch of the loader the largest, or raise the batch size."
        )
    if found < rows:
        index = np.minimum(np.arange(rows), found - 1)
        batch = jax.tree.map(lambda leaf: _on_host(leaf)[index], batch)
    return batch, row_mask(found, rows)


def _on_host(leaf: Any) -> np.ndarray:
    # An explicit fetch: an implicit one is refused under a transfer guard.
    return np.asarray(jax.device_get(leaf) if isinstance(leaf, jax.Array) else leaf)
