"""Are these the arrays that a run began with? Some rows of them tell, without reading all."""

import hashlib

import numpy as np

from xtrainer.tree import flatten_with_paths
from xtrainer.types import PyTree

_ROWS = 64
_BYTES = 2**16
"""Read of all leaves together, about; an array that is mapped from a file stays there."""


def array_fingerprint(arrays: PyTree) -> str:
    """Returns a text by which arrays are told from others.

    It covers the path, dtype and shape of every leaf, and evenly spaced rows of it: the first, the
    last and 62 between them, of long rows a part, another one of each. Added, removed and reordered
    rows change it, as do arrays that were made anew; a single row that was edited may not.

    Args:
        arrays: A pytree of NumPy arrays with at least one axis.

    Example:
        >>> first, again, other = np.arange(6), np.arange(6), np.arange(6)[::-1]
        >>> array_fingerprint(first) == array_fingerprint(again) != array_fingerprint(other)
        True
    """
    leaves = flatten_with_paths(arrays)
    digest = hashlib.blake2b(digest_size=16, usedforsecurity=False)
    for path, leaf in leaves.items():
        digest.update(f"{path}\0{leaf.dtype}\0{leaf.shape}\0".encode("utf-8", "surrogatepass"))
        if leaf.dtype.hasobject or not leaf.size:
            continue  # of objects there are addresses, which say nothing
        chosen = np.unique(np.linspace(0, len(leaf) - 1, _ROWS).astype(np.int64))
        most = max(1, _BYTES // (len(leaves) * len(chosen) * leaf.dtype.itemsize))
        for number, row in enumerate(chosen.tolist()):
            digest.update(_part(leaf[row], number / _ROWS, most).tobytes())
    return digest.hexdigest()


def _part(row: np.ndarray, where: float, most: int) -> np.ndarray:
    """Returns so many neighbouring elements of a row, from some place in it."""
    row = np.asarray(row)
    while row.ndim > 1 and row.size > most:  # without a copy of all of a row that is not contiguous
        row = row[int(where * len(row))]
    flat = row.reshape(-1)
    first = int(where * max(0, flat.size - most))
    return flat[first : first + most]
