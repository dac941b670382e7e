"""What is taken from a text of JSON that anybody may have changed? Only what we could have written.

A text that is too long or too deep, that says something twice, or that holds a number no reader of
JSON agrees on (NaN, 1e999, ten thousand digits) is an error before anything looks into it.
"""

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

from xtrainer.types import JSON, HostMetrics

MAX_BYTES = 2**26
MAX_ITEMS = 2**22
MAX_LEVELS = 100
"""Lists and objects inside the outermost one: far from what Python's recursion takes."""
MAX_DIGITS = 4300
"""Of a whole number; as many as Python itself writes."""


def parse_json(text: str | bytes) -> JSON:
    """Returns what a text of JSON holds.

    Args:
        text: Of a file or a line; bytes are UTF-8.

    Raises:
        ValueError: If it is not JSON, is more of it than :func:`check_size` and ``MAX_LEVELS``
            allow, has a key twice in one object, or a number that is not finite or too long.

    Example:
        >>> parse_json('{"step": 3, "best": [0.5, null]}')
        {'step': 3, 'best': [0.5, None]}
        >>> parse_json('{"step": 3, "step": 4}')
        Traceback (most recent call last):
        ValueError: the key 'step' is there twice
    """
    if isinstance(text, str):
        text = text.encode("utf-8", errors="surrogatepass")
    check_size(text)
    try:
        found = _DECODER.decode(text.decode("utf-8"))
    except RecursionError:
        raise ValueError(f"more than {MAX_LEVELS} levels") from None
    _check_levels(found)
    return found


def check_size(text: bytes) -> None:
    """Checks that a text is not more than is read back; for what is about to be written as well.

    Raises:
        ValueError: If it has more than ``MAX_BYTES`` bytes or ``MAX_ITEMS`` items.
    """
    if len(text) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES} bytes")
    # An empty list is two bytes of a file and sixty of memory.
    if sum(map(text.count, (b"[", b"{", b","))) > MAX_ITEMS:
        raise ValueError(f"more than {MAX_ITEMS} items")


def _check_levels(found: JSON) -> None:
    level: list[JSON] = [[found]]
    for _ in range(MAX_LEVELS + 2):
        items = (one.values() if isinstance(one, dict) else one for one in level)
        level = [item for each in items for item in each if isinstance(item, dict | list)]
        if not level:
            return
    raise ValueError(f"more than {MAX_LEVELS} levels")


def _once(pairs: list[tuple[str, JSON]]) -> dict[str, JSON]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {twice!r:.80} is there twice")
    return found


def _whole(text: str) -> int:
    if len(text.lstrip("-")) > MAX_DIGITS:  # Python's own limit can be switched off
        raise ValueError(f"a number of {len(text)} digits, more than {MAX_DIGITS}")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"found {text:.40}, which is more than a float can be")
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"found {constant}, which is not JSON")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_once, parse_int=_whole, parse_float=_finite, parse_constant=_refuse
)


def row_to_json(row: HostMetrics) -> JSON:
    """Returns a row as JSON, which has no NaN and no infinities: those as text.

    Example:
        >>> row_from_json(row_to_json({"loss": float("inf")}))
        {'loss': inf}
    """
    return {
        name: value if math.isfinite(value) else repr(value)
        for name, value in ((name, float(value)) for name, value in row.items())
    }


def row_from_json(saved: Mapping[str, Any]) -> HostMetrics:
    """Returns what :func:`row_to_json` was given."""
    return {str(name): float(value) for name, value in saved.items()}
