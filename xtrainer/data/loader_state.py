"""How does the state of a loader become JSON, and JSON its state?"""

import json
from typing import Any

from xtrainer.errors import LoaderError
from xtrainer.types import JSON

_BYTES = "bytes_as_utf8"
_PLAIN = frozenset({int, str, bool, type(None)})


def state_to_json(state: Any, name: str) -> JSON:
    """Returns a copy of what ``get_state`` gave, which the loader cannot change.

    Args:
        state: Of the loader.
        name: What the loader is called in messages.

    Raises:
        LoaderError: If the state is not JSON.

    Example:
        >>> state_to_json(b"grain", "train")
        {'bytes_as_utf8': 'grain'}
    """
    if _is_flat(state):
        return dict(state)
    try:
        return _pack(state)
    except (TypeError, ValueError, RecursionError) as error:
        raise LoaderError(
            f"get_state() of the {name!r} loader gave a {type(state).__name__} that is "
            f"not JSON ({error}), expected dicts, lists, str, int, float, bool and None. "
            "Convert arrays with tolist() and NumPy numbers with int()."
        ) from error


def state_from_json(state: JSON) -> Any:
    """Returns what ``set_state`` is given: what ``get_state`` gave, as a copy.

    Example:
        >>> state_from_json({"bytes_as_utf8": "grain"})
        b'grain'
    """
    if isinstance(state, dict) and set(state) == {_BYTES}:
        return state[_BYTES].encode("utf-8")
    return json.loads(json.dumps(state))  # the loader may keep it and change it


def _is_flat(state: Any) -> bool:
    """Says whether a state is JSON that a shallow copy protects, as most loaders have it."""
    return type(state) is dict and all(
        type(key) is str and type(value) in _PLAIN for key, value in state.items()
    )


def _pack(state: Any) -> JSON:
    """Returns the state by way of JSON: a check, and a copy that the loader cannot change."""
    if isinstance(state, bytes):  # Grain's DataLoader gives JSON as bytes
        state = {_BYTES: state.decode("utf-8")}
    text = json.dumps(state, allow_nan=False)
    _check_keys(state)
    return json.loads(text)


def _check_keys(state: Any) -> None:
    # json.dumps writes the key 1 as "1" without a word.
    if isinstance(state, dict):
        for key, value in state.items():
            if not isinstance(key, str):
                raise TypeError(f"the key {key!r} is not a str")
            _check_keys(value)
    elif isinstance(state, list | tuple):
        for value in state:
            _check_keys(value)
