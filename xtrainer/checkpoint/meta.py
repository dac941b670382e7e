"""Are the metadata of a step what a save writes? Asked before any part of them is believed."""

import math
import re
from collections.abc import Mapping
from typing import Any

from xtrainer.checkpoint.items import LATER_KEYS, META_KEYS
from xtrainer.types import JSON

MAX_LEAVES = 10**6
MAX_ELEMENTS = 2**48
"""Of one array; with the checks of the sizes of files it keeps a shape from meaning anything."""

_MAPPINGS = (
    "progress", "loaders", "callbacks", "config", "versions", "mesh", "metrics", "leaves",
    "loggers", "ledger", "numerics",
)  # fmt: skip
_DTYPE = re.compile(r"[a-z][a-z0-9_]*(<[a-z0-9_]+>)?")


def meta_problems(meta: Mapping[str, JSON]) -> list[str]:
    """Returns what is wrong with the metadata of a step; nothing for those that were saved.

    What each part holds is checked by what reads it.

    Args:
        meta: As read from the file.
    """
    missing = sorted(META_KEYS - LATER_KEYS - meta.keys())
    if missing:
        return [f"found no {missing}, expected all of it"]
    problems = [
        f"{name}: found a {type(meta[name]).__name__}, expected an object"
        for name in (*_MAPPINGS, *sorted(LATER_KEYS & meta.keys()))
        if not isinstance(meta[name], dict)
    ]
    count = meta["process_count"]
    if type(count) is not int or count < 1:
        problems.append(f"process_count: found {count!r:.40}, expected a number of processes")
    return problems or _leaf_problems(meta["leaves"])


def _leaf_problems(leaves: dict[str, Any]) -> list[str]:
    if len(leaves) > MAX_LEAVES:
        return [f"leaves: found {len(leaves)} of them, expected at most {MAX_LEAVES}"]
    return [
        f"leaves: found {path!r:.80} with {leaf!r:.80}, expected a shape and a dtype"
        for path, leaf in leaves.items()
        if not _is_leaf(leaf)
    ]


def _is_leaf(leaf: Any) -> bool:
    return (
        isinstance(leaf, dict)
        and isinstance(leaf.get("dtype"), str)
        and bool(_DTYPE.fullmatch(leaf["dtype"]))
        and is_shape(leaf.get("shape"))
    )


def is_shape(shape: JSON) -> bool:
    """Says whether JSON is the shape of an array that could exist.

    Example:
        >>> is_shape([2, 3]), is_shape([-1]), is_shape([True]), is_shape([2**40, 2**40])
        (True, False, False, False)
    """
    return (
        isinstance(shape, list)
        and len(shape) <= 32
        and all(type(size) is int and 0 <= size <= MAX_ELEMENTS for size in shape)
        and math.prod(shape) <= MAX_ELEMENTS
    )
