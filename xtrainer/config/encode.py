"""How is a value written as JSON so that it comes back unchanged? Plain where its annotation tells.

Where the annotation does not tell (``Any``, a union), a mapping of one key marks what JSON lacks:
``{"$tuple": [1, 2]}``, ``{"$float": "inf"}``. No mark can name code: nothing is imported or called.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Union

import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from xtrainer.registry import models
from xtrainer.types import JSON

CLASS_KEY = "class_name"
"""The key under which a config's dictionary holds the name of its class."""

UNSAVED_KEY = "not_saved"
"""Marks, in a saved config, a value that has no JSON form: ``{"not_saved": description}``."""

TUPLE, FLOAT, PATH, DTYPE, SPEC, PAIRS = "$tuple", "$float", "$path", "$dtype", "$spec", "$pairs"
MARKS = (TUPLE, FLOAT, PATH, DTYPE, SPEC, PAIRS, UNSAVED_KEY)
NON_FINITE = ("inf", "-inf", "nan")


def field_types(config_class: type) -> dict[str, Any]:
    """Returns the annotation of each field; ``Any`` where a name cannot be resolved."""
    try:
        hints = typing.get_type_hints(config_class)
    except NameError:
        hints = {}
        for part in reversed(config_class.__mro__):
            hints |= _resolvable(part)
    return {field.name: hints.get(field.name, Any) for field in dataclasses.fields(config_class)}


def _resolvable(part: type) -> dict[str, Any]:
    # One name that only a type checker knows must not switch off the checks of the other fields.
    found = {}
    for name, hint in part.__dict__.get("__annotations__", {}).items():
        holder = type("_", (), {"__annotations__": {name: hint}, "__module__": part.__module__})
        try:
            found |= typing.get_type_hints(holder)
        except NameError:
            found[name] = Any
    return found


def only(hint: Any) -> Any:
    """Returns the one annotation that a value other than None must fit; ``Any`` if there are more.

    Example:
        >>> only(float | None), only(int | str)
        (<class 'float'>, typing.Any)
    """
    if typing.get_origin(hint) not in (Union, types.UnionType):
        return hint
    options = [option for option in typing.get_args(hint) if option is not type(None)]
    return options[0] if len(options) == 1 else Any


def mark_of(value: Any) -> str | None:
    """Returns the mark of a marked value, None for every other value."""
    if isinstance(value, Mapping) and len(value) == 1 and next(iter(value)) in MARKS:
        return str(next(iter(value)))
    return None


def decode(mark: str, content: Any) -> Any:
    """Returns the value behind a mark; the items of a tuple are left as they were written.

    Raises:
        ValueError: If the content is not what :func:`to_json` writes.
        TypeError: Likewise.
    """
    if mark == TUPLE and isinstance(content, list):
        return tuple(content)
    if mark == FLOAT and content in NON_FINITE:
        return float(content)
    if mark == PATH and isinstance(content, str):
        return Path(content)
    if mark == DTYPE and isinstance(content, str):
        return jnp.dtype(content)
    if mark == SPEC and isinstance(content, list):
        return to_spec(content)
    raise ValueError(f"{content!r} is not what {mark} marks")


def to_spec(axes: Any) -> PartitionSpec:
    """Returns a partition spec from axis names; several names for one dimension are a list."""
    return PartitionSpec(*(tuple(axis) if isinstance(axis, list) else axis for axis in axes))


def to_json(value: Any, hint: Any = Any) -> JSON:
    """Returns a config value as JSON that is read back, by the same annotation, as an equal value.

    A value without a JSON form (a function, an array) becomes ``{"not_saved": description}``.
    """
    hint = only(hint)
    if dataclasses.is_dataclass(value) and hasattr(value, "to_dict"):
        return value.to_dict()  # type: ignore[union-attr]
    if isinstance(value, Enum):
        return value.value if hint is type(value) else _unsaved(value)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, np.generic):
        return to_json(value.item(), hint)
    if isinstance(value, float):
        text = value if math.isfinite(value) else repr(value)
        return text if hint is float or text is value else {FLOAT: text}
    if isinstance(value, Path):
        return str(value) if hint is Path else {PATH: str(value)}
    if isinstance(value, Mapping):
        return _write_mapping(value, typing.get_args(hint))
    if isinstance(value, list | tuple):
        return _write_items(value, hint)
    if isinstance(value, PartitionSpec):
        axes = tuple(value)  # type: ignore[arg-type]
        return {SPEC: [list(axis) if isinstance(axis, tuple) else axis for axis in axes]}
    if dataclasses.is_dataclass(value) and hint is type(value):
        return {name: to_json(getattr(value, name), t) for name, t in field_types(hint).items()}
    return _write_object(value)


def _write_items(value: list | tuple, hint: Any) -> JSON:
    args = typing.get_args(hint)
    if len(args) == len(value) and args[-1:] != (Ellipsis,) and typing.get_origin(hint) is tuple:
        items = [to_json(item, arg) for item, arg in zip(value, args, strict=True)]
    else:
        items = [to_json(item, args[0] if args else Any) for item in value]
    plain = isinstance(value, list) or hint is tuple or typing.get_origin(hint) is tuple
    return items if plain else {TUPLE: items}


def _write_mapping(value: Mapping, args: tuple) -> JSON:
    key_hint, item_hint = args if len(args) == 2 else (Any, Any)
    keys = list(value)
    readable = all(type(key) is str for key in keys) or (
        key_hint is int and all(type(key) is int for key in keys)
    )
    if readable and mark_of(value) is None and CLASS_KEY not in value:
        return {str(key): to_json(item, item_hint) for key, item in value.items()}
    return {PAIRS: [[to_json(key), to_json(item, item_hint)] for key, item in value.items()]}


def _write_object(value: Any) -> JSON:
    registered = models.name_of(value)
    if registered is not None:
        return registered
    scalar_type = isinstance(value, type) and issubclass(value, np.generic)
    jax_scalar_type = callable(value) and isinstance(getattr(value, "dtype", None), np.dtype)
    if isinstance(value, np.dtype) or scalar_type or jax_scalar_type:
        dtype: Any = value
        return {DTYPE: jnp.dtype(dtype).name}
    return _unsaved(value)


def _unsaved(value: Any) -> JSON:
    return {UNSAVED_KEY: getattr(value, "__qualname__", type(value).__qualname__)}
