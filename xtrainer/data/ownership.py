"""May whoever made this batch still write to it? Copied where that cannot be ruled out."""

import sys
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from xtrainer.data.batch import num_rows
from xtrainer.types import BatchLike

_SMALL_BYTES = 2**14
"""Bytes up to which copying an array costs less than looking for its other owners."""
_ALIGNMENT = 64
_IMMUTABLE = (jax.Array, np.generic, int, float, str, bytes, type(None))


class Owner:
    """Makes the batches of a loader our own, and checks that the leaves of each have equal rows.

    A batch of the structure and shapes of the one before it is neither walked through again nor
    checked: most are.
    """

    def __init__(self) -> None:
        self._structure: Any = None
        self._shapes: list[Any] = []

    def __call__(self, box: list[BatchLike]) -> BatchLike:
        """Returns what :func:`own` does.

        Raises:
            BatchError: If the leaves of the batch have different leading axes.
        """
        if self._structure is not None:
            copies = self._copies(box[0])
            if copies is not None:
                return self._structure.unflatten(copies)
        leaves, structure = jax.tree.flatten(box[0])
        small = all(type(leaf) is np.ndarray and leaf.nbytes <= _SMALL_BYTES for leaf in leaves)
        shapes = [leaf.shape for leaf in leaves] if small else []
        leaves.clear()  # they would count as owners
        batch = own(box)
        num_rows(batch)
        self._structure, self._shapes = (structure, shapes) if small else (None, [])
        return batch

    def _copies(self, batch: BatchLike) -> list[np.ndarray] | None:
        """Returns copies of the leaves of a batch that is like the one before, else None."""
        try:
            leaves = self._structure.flatten_up_to(batch)
        except (TypeError, ValueError):  # another structure
            return None
        copies = []
        for leaf, shape in zip(leaves, self._shapes, strict=True):
            if type(leaf) is not np.ndarray or leaf.shape != shape:
                return None
            copies.append(leaf.copy())
        return copies


def own(box: list[BatchLike]) -> BatchLike:
    """Returns the batch in a box, copied unless nobody else can write to it.

    A loader may fill the same buffer again, while ``jax.device_put`` on a CPU may share it. A batch
    of arrays that own their memory, to which nothing but the batch refers, is taken as it is.
    Copies are aligned so that a CPU device can share them and no second copy is made.

    Args:
        box: A list with the batch as its one entry; nothing else of the caller may refer to it.

    Example:
        >>> buffer = np.zeros(1)
        >>> kept = own([{"inputs": buffer}])
        >>> buffer += 1
        >>> kept["inputs"].tolist()
        [0.0]
    """
    leaves, structure = jax.tree.flatten(box[0])
    copies = [
        leaf.copy() for leaf in leaves if type(leaf) is np.ndarray and leaf.nbytes <= _SMALL_BYTES
    ]
    if len(copies) == len(leaves):  # as for every batch of a small model
        return structure.unflatten(copies)
    if any(getattr(leaf, "nbytes", 0) > _SMALL_BYTES for leaf in leaves):
        leaves.clear()  # they would count as owners
        if _is_unshared(box):
            return box[0]
        leaves = structure.flatten_up_to(box[0])
    return structure.unflatten([_copy(leaf) for leaf in leaves])


def _references(values: Iterable[Any]) -> list[int]:
    return [sys.getrefcount(value) for value in values]


_ALONE = _references(iter([object()]))[0]
"""What is counted of an object that only its container refers to."""


def _is_unshared(container: Iterable[Any]) -> bool:
    """Says whether nothing but a container refers to its entries, nor to what is in them."""
    if isinstance(container, dict):
        container = container.values()
    for value, count in zip(container, _references(container), strict=True):
        if isinstance(value, _IMMUTABLE):
            continue
        if count > _ALONE:
            return False
        if type(value) is np.ndarray:
            if value.base is not None:
                return False
        elif type(value) in (dict, list, tuple):
            if not _is_unshared(value):
                return False
        elif not hasattr(value, "__dict__") or not _is_unshared(vars(value)):
            return False
    return True


def _copy(leaf: Any) -> Any:
    if type(leaf) is np.ndarray and leaf.nbytes <= _SMALL_BYTES:
        return leaf.copy()
    if isinstance(leaf, jax.Array | np.generic) or not hasattr(leaf, "__array__"):
        return leaf
    array = np.asarray(leaf)  # some __array__ give their own buffer, and so does this
    if array.nbytes <= _SMALL_BYTES or array.dtype.hasobject:
        return np.array(array)
    memory = np.empty(array.nbytes + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    np.copyto(copy, array)
    return copy
