"""What is a batch? A pytree whose leaves share a leading axis; its shapes, and what differs."""

import math
import re
from collections.abc import Hashable, Mapping
from typing import Any

import flax.struct
import jax
import numpy as np

from xtrainer.errors import BatchError
from xtrainer.tree import flatten_with_paths
from xtrainer.types import JSON, BatchLike, PyTree

_UNSUPPORTED = "unsupported"
_MAX_ELEMENTS = 2**40


@flax.struct.dataclass
class Batch:
    """A batch for those who need no class of their own; every leaf has the rows as first axis.

    Attributes:
        inputs: What the model is given.
        targets: What the loss compares with.
        mask: Which rows, or tokens, count.

    Example:
        >>> num_rows(Batch(inputs=np.zeros((4, 3)), targets=np.zeros(4)))
        4
    """

    inputs: PyTree
    targets: PyTree = None
    mask: PyTree = None


def num_rows(batch: BatchLike) -> int:
    """Returns the length of the leading axis that all leaves share.

    Args:
        batch: A pytree of arrays or of ``jax.ShapeDtypeStruct``.

    Raises:
        BatchError: If there is no leaf, if a leaf has no axis, or if the leading axes differ.

    Example:
        >>> num_rows({"inputs": np.zeros((8, 2)), "targets": np.zeros(8)})
        8
    """
    leaves = jax.tree.leaves(batch)
    try:  # asked of every batch
        rows = leaves[0].shape[0]
        if all([leaf.shape[0] == rows for leaf in leaves]):
            return rows
    except (AttributeError, IndexError, TypeError):
        pass
    shapes = [_shape(leaf) for leaf in leaves]
    if shapes and all(shapes) and len({shape[0] for shape in shapes}) == 1:
        return shapes[0][0]
    if not shapes:
        raise BatchError(
            f"Found a batch without arrays ({type(batch).__name__}), expected a pytree with at "
            "least one array. Yield dicts, tuples or xt.Batch of arrays from the loader."
        )
    found = ", ".join(f"{path or 'batch'}: {_shape(leaf)}" for path, leaf in _leaves(batch).items())
    if not all(shapes):
        raise BatchError(
            f"Found a leaf without a leading batch axis ({found}), expected every leaf to have the "
            "rows as first axis. Repeat constants per row, or keep them out of the batch."
        )
    raise BatchError(
        f"Found leaves with different leading axes ({found}), expected one number of rows. "
        "Make the loader give every leaf the same first axis."
    )


def batch_spec(batch: BatchLike) -> PyTree:
    """Returns the batch with ``jax.ShapeDtypeStruct`` for arrays, with the dtypes a device has.

    Example:
        >>> batch_spec({"inputs": np.zeros((8, 2))})
        {'inputs': ShapeDtypeStruct(shape=(8, 2), dtype=float32)}
    """
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(_shape(leaf), _dtype(leaf)), batch)


def batch_signature(batch: BatchLike) -> Hashable:
    """Returns what is equal for batches that differ in their rows only; hashable.

    Dtypes are those a device has: int64 from a loader and int32 on the device are the same.

    Example:
        >>> batch_signature(np.zeros((8, 2))) == batch_signature(np.ones((5, 2), np.float32))
        True
    """
    leaves = tuple((path, _row(leaf), _dtype(leaf)) for path, leaf in _leaves(batch).items())
    return jax.tree.structure(batch), leaves


def describe_mismatch(expected: BatchLike, found: BatchLike) -> str | None:
    """Returns what differs between two batches other than the number of rows, None if nothing.

    Example:
        >>> describe_mismatch({"inputs": np.zeros((8, 2))}, {"inputs": np.zeros((8, 3))})
        'inputs: found float32[rows, 3], expected float32[rows, 2]'
    """
    if batch_signature(expected) == batch_signature(found):
        return None
    want, have = _leaves(expected), _leaves(found)
    parts = [
        f"{path or 'batch'}: found {_show(have[path])}, expected {_show(want[path])}"
        for path in want
        if path in have and _show(have[path]) != _show(want[path])
    ]
    parts += [f"{path or 'batch'}: missing" for path in want if path not in have]
    parts += [f"{path or 'batch'}: not expected" for path in have if path not in want]
    if set(want) != set(have):
        parts.append(f"found the leaves {sorted(have)}, expected {sorted(want)}")
    if not parts:
        structures = jax.tree.structure(found), jax.tree.structure(expected)
        parts.append(f"found the containers {structures[0]}, expected {structures[1]}")
    return "; ".join(parts)


def get_input(batch: BatchLike) -> PyTree:
    """Returns what the model is given: the key or the attribute ``inputs``.

    Raises:
        BatchError: If the batch has neither.

    Example:
        >>> get_input({"inputs": 1, "targets": 2})
        1
    """
    if hasattr(batch, "inputs"):
        return batch.inputs
    if isinstance(batch, Mapping) and "inputs" in batch:
        return batch["inputs"]
    keys = f" with the keys {sorted(map(str, batch))}" if isinstance(batch, Mapping) else ""
    raise BatchError(
        f"Found a batch of type {type(batch).__name__}{keys}, expected a key or an attribute "
        "'inputs'. Override batch_to_input(batch) to say what the model is given."
    )


def encode_spec(spec: PyTree) -> JSON:
    """Returns the shapes and dtypes of a batch as JSON, for a checkpoint.

    Nests of dict, list, tuple, None and ``Batch`` can be written down. A batch with another
    container gives ``{"unsupported": "ClassName"}``: nothing is imported by name to rebuild it.

    Example:
        >>> decode_spec(encode_spec(batch_spec((np.zeros((8, 2)), None))))
        (ShapeDtypeStruct(shape=(8, 2), dtype=float32), None)
    """
    try:
        return _encode(spec)
    except _UnsupportedNode as error:
        return {_UNSUPPORTED: str(error)}


def decode_spec(data: JSON) -> PyTree:
    """Returns the tree of ``jax.ShapeDtypeStruct`` that ``encode_spec`` wrote down.

    Raises:
        BatchError: If the batch had a container that could not be written, or is malformed.
    """
    if isinstance(data, dict) and _UNSUPPORTED in data:
        raise BatchError(
            f"Found a batch of type {data[_UNSUPPORTED]!r} in the checkpoint, expected dict, list, "
            "tuple or xt.Batch, which can be rebuilt from a file. Pass exmp_input= with an example."
        )
    try:
        return _decode(data)
    except (KeyError, TypeError, ValueError, RecursionError, OverflowError) as error:
        raise BatchError(
            f"Found a batch description that cannot be read ({error!r}), expected what encode_spec "
            "writes. Pass exmp_input= with an example batch."
        ) from error


class _UnsupportedNode(Exception):
    """A container or leaf that has no form in JSON; the message is its name."""


def _encode(node: Any) -> JSON:
    if node is None:
        return {"kind": "none"}
    if isinstance(node, jax.ShapeDtypeStruct):
        if not _has_name(node.dtype):
            raise _UnsupportedNode(str(node.dtype))
        return {"kind": "array", "shape": list(node.shape), "dtype": node.dtype.name}
    if type(node) is dict:
        if not all(type(key) in (str, int) for key in node):
            raise _UnsupportedNode("dict with keys other than str and int")
        return {"kind": "dict", "items": [[key, _encode(value)] for key, value in node.items()]}
    if type(node) in (list, tuple):
        return {"kind": type(node).__name__, "items": [_encode(value) for value in node]}
    if type(node) is Batch:
        return {
            "kind": "Batch",
            "items": [_encode(n) for n in (node.inputs, node.targets, node.mask)],
        }
    raise _UnsupportedNode(type(node).__name__)


def _decode(data: JSON) -> PyTree:
    kind = data["kind"]
    if kind == "none":
        return None
    if kind == "array":
        sizes = data["shape"]
        if not all(type(size) is int and size >= 0 for size in sizes) or (
            math.prod(sizes) > _MAX_ELEMENTS
        ):
            raise ValueError(f"shape {data['shape']!r}")
        if not re.fullmatch(r"[a-z][a-z0-9_]*", data["dtype"]):
            raise ValueError(f"dtype {data['dtype']!r}")
        dtype = np.dtype(data["dtype"])
        if not _has_name(dtype):
            raise ValueError(f"dtype {dtype}")
        return jax.ShapeDtypeStruct(tuple(data["shape"]), dtype)
    if kind == "dict":
        if not all(type(key) in (str, int) for key, _ in data["items"]):
            raise ValueError("dict keys other than str and int")
        return {key: _decode(value) for key, value in data["items"]}
    items = [_decode(value) for value in data["items"]]
    if kind == "Batch":
        inputs, targets, mask = items
        return Batch(inputs=inputs, targets=targets, mask=mask)
    if kind in ("list", "tuple"):
        return items if kind == "list" else tuple(items)
    raise ValueError(f"kind {kind!r}")


def _has_name(dtype: Any) -> bool:
    """Says whether the dtype is one of numbers that its name gives back: no strings, no keys."""
    try:
        return not dtype.hasobject and np.dtype(dtype.name) == dtype
    except (AttributeError, TypeError):
        return False


def _leaves(batch: BatchLike) -> dict[str, Any]:
    return flatten_with_paths(batch)


def _shape(leaf: Any) -> tuple[int, ...]:
    return tuple(getattr(leaf, "shape", ()))


def _row(leaf: Any) -> tuple[int, ...] | None:
    """Returns the shape of one row, None for a leaf without rows."""
    shape = _shape(leaf)
    return shape[1:] if shape else None


def _dtype(leaf: Any) -> Any:
    """Returns the dtype the leaf has on a device (float64 becomes float32 without x64)."""
    dtype = getattr(leaf, "dtype", None)
    if dtype is None:
        dtype = np.asarray(leaf).dtype
    try:
        return jax.dtypes.canonicalize_dtype(dtype)
    except (TypeError, ValueError):  # typed keys: no other form on a device
        return dtype


def _show(leaf: Any) -> str:
    row = _row(leaf)
    return f"{_dtype(leaf)}" + ("[]" if row is None else str(["rows", *row]).replace("'", ""))
