"""Does a value fit an annotation? Reads plain data into typed configs, collects all mistakes."""

import dataclasses
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union

import numpy as np
from jax.sharding import PartitionSpec

from xtrainer.config.encode import (
    CLASS_KEY,
    NON_FINITE,
    PAIRS,
    TUPLE,
    UNSAVED_KEY,
    decode,
    field_types,
    mark_of,
    to_spec,
)
from xtrainer.config.redact import HIDDEN, is_secret, redact
from xtrainer.errors import did_you_mean
from xtrainer.registry import models


@dataclass(frozen=True)
class ParseOptions:
    """How strict reading is.

    Args:
        strict_class_names: An unknown ``class_name`` is a mistake.
        unknown_keys: What a key that is no field means.
        none_to_zero: None stands for 0 where an int is expected.
        convert: Plain data may stand for what it is read as: a mapping for a config, a text for a
            registered name. False asks whether the value itself fits.
    """

    strict_class_names: bool = False
    unknown_keys: Literal["error", "ignore"] = "error"
    none_to_zero: bool = False
    convert: bool = True


class Parser:
    """Reads values by annotation; what does not fit is noted in ``problems`` and read as given.

    Args:
        base: The base class of all configs.
        known: Config classes by name; ``class_name`` can choose among these and nothing else.
        options: How strict to be.
    """

    def __init__(self, base: type, known: Mapping[str, type], options: ParseOptions) -> None:
        self.base = base
        self.known = known
        self.options = options
        self.problems: list[str] = []

    def read(self, hint: Any, value: Any, path: str) -> Any:
        """Returns ``value`` as ``hint`` asks.

        Args:
            hint: An annotation.
            value: Plain data, or an object that already fits.
            path: Where the value stands, for messages.
        """
        if type(value).__name__ in ("ConfigDict", "FrozenConfigDict"):
            value = value.to_dict()
        origin, args = typing.get_origin(hint), typing.get_args(hint)
        if origin is Union or origin is types.UnionType:
            return self._read_union(args, value, path)
        mark = mark_of(value) if self.options.convert else None
        if mark == PAIRS:
            return self._read_pairs(hint, value[mark], path)
        if mark is not None:
            problems = len(self.problems)
            value = self._unmark(mark, value[mark], path)
            if len(self.problems) > problems:
                return value
        if hint is Any or isinstance(hint, typing.TypeVar):
            return self._read_any(value, path)
        if origin is Literal:
            return self._read_literal(args, value, path)
        if origin in (list, Sequence, Iterable) or hint is list:
            keep = isinstance(value, tuple) and origin in (Sequence, Iterable)
            return self._read_items(tuple if keep else list, args[:1] or (Any,), value, path)
        if origin is tuple or hint is tuple:
            return self._read_tuple(args, value, path)
        if origin in (dict, Mapping) or hint in (dict, Mapping):
            return self._read_mapping(args or (Any, Any), value, path)
        if hint is None or hint is type(None):
            return value if value is None else self._wrong(path, value, "None")
        if origin in (type, Callable) or hint in (type, Callable):
            return self._read_callable(value, path)
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            return self._read_config(hint, value, path)
        return self._read_scalar(origin or hint, value, path)

    def _wrong(self, path: str, value: Any, expected: str) -> Any:
        shown = HIDDEN if is_secret(path) else repr(redact(value))
        self.problems.append(
            f"{path}: found {shown} ({type(value).__name__}), expected {expected}."
        )
        return value

    def _unmark(self, mark: str, content: Any, path: str) -> Any:
        if mark == UNSAVED_KEY:
            self.problems.append(
                f"{path}: the value {content} could not be saved with the config. "
                "Pass the config that holds it."
            )
            return content
        try:
            return decode(mark, content)
        except (ValueError, TypeError) as error:
            self.problems.append(f"{path}: cannot read the mark {mark!r}: {error}.")
            return content

    def _read_union(self, options: tuple, value: Any, path: str) -> Any:
        if value is None and type(None) in options:
            return None
        kind = _type_behind(value)
        options = tuple(option for option in options if option is not type(None))
        mistakes: dict[int, list[str]] = {}
        # The option of exactly this type goes first: "inf" fits ``float | str`` as a text.
        for option in sorted(options, key=lambda o: (typing.get_origin(o) or o) is not kind):
            attempt = Parser(self.base, self.known, self.options)
            result = attempt.read(option, value, path)
            if not attempt.problems:
                return result
            mistakes[options.index(option)] = attempt.problems
        # For a mapping, the mistakes inside it say more than that it is no number.
        configs = [i for i, option in enumerate(options) if self._is_config(option)]
        telling = configs if kind is dict and self.options.convert else []
        if len(options) == 1 or telling:
            self.problems += mistakes[(telling or [0])[0]]
            return value
        return self._wrong(path, value, " or ".join(_describe(option) for option in options))

    def _is_config(self, hint: Any) -> bool:
        return isinstance(hint, type) and issubclass(hint, self.base)

    def _read_literal(self, args: tuple, value: Any, path: str) -> Any:
        if not any(type(value) is type(arg) and value == arg for arg in args):
            listed = ", ".join(repr(arg) for arg in args)
            known = did_you_mean(value, args) if isinstance(value, str) else f"Known: {listed}."
            self.problems.append(f"{path}: found {value!r}. {known}")
        return value

    def _read_items(self, kind: type, args: tuple, value: Any, path: str) -> Any:
        if not isinstance(value, list | tuple):
            return self._wrong(path, value, "a list")
        return kind(self.read(args[0], item, f"{path}[{i}]") for i, item in enumerate(value))

    def _read_tuple(self, args: tuple, value: Any, path: str) -> Any:
        if not args or args[-1] is Ellipsis:
            return self._read_items(tuple, args[:1] or (Any,), value, path)
        if not isinstance(value, list | tuple) or len(value) != len(args):
            return self._wrong(path, value, f"{len(args)} values")
        pairs = enumerate(zip(args, value, strict=True))
        return tuple(self.read(arg, item, f"{path}[{i}]") for i, (arg, item) in pairs)

    def _read_mapping(self, args: tuple, value: Any, path: str) -> Any:
        if not isinstance(value, Mapping):
            return self._wrong(path, value, "a mapping")
        read = {}
        for key, item in value.items():
            if args[0] is int and self.options.convert and _is_whole(key):
                key = int(key)  # JSON has only texts as keys
            read[self.read(args[0], key, f"{path}: key")] = self.read(
                args[1], item, f"{path}.{key}"
            )
        return read

    def _read_pairs(self, hint: Any, content: Any, path: str) -> Any:
        if not isinstance(content, list) or not all(_is_pair(pair) for pair in content):
            return self._wrong(path, content, "a list of [key, value] pairs")
        args = typing.get_args(hint) if typing.get_origin(hint) in (dict, Mapping) else (Any, Any)
        if not (hint is Any or hint in (dict, Mapping) or args != (Any, Any)):
            return self._wrong(path, content, _describe(hint))
        pairs = [(self.read(args[0], key, f"{path}: key"), item) for key, item in content]
        return {key: self.read(args[1], item, f"{path}.{key}") for key, item in pairs}

    def _read_config(self, hint: type, value: Any, path: str) -> Any:
        if isinstance(value, hint):
            return value
        expected = f"a {hint.__name__} or a mapping of its fields"
        if not isinstance(value, Mapping) or not self.options.convert:
            expected = expected if self.options.convert else f"a {hint.__name__}"
            return self._wrong(path, value, expected)
        data = dict(value)
        config_class = self._choose_class(hint, data.pop(CLASS_KEY, None), path)
        hints = field_types(config_class)
        fields = {field.name: field for field in dataclasses.fields(config_class) if field.init}
        values = {}
        for key, item in data.items():
            if key in fields:
                values[key] = self.read(hints[key], item, f"{path}.{key}")
            elif self.options.unknown_keys == "error":
                self.problems.append(
                    f"{path}.{key}: {config_class.__name__} has no such field. "
                    f"{did_you_mean(str(key), fields)}"
                )
        missing = sorted(name for name in fields.keys() - values if _is_required(fields[name]))
        if missing:
            names = ", ".join(missing)
            self.problems.append(f"{path}: {config_class.__name__} needs a value for {names}.")
            return value
        return config_class(**values)

    def _choose_class(self, hint: type, name: Any, path: str) -> type:
        if name is None or name == hint.__name__:
            return hint
        candidates = {key: known for key, known in self.known.items() if issubclass(known, hint)}
        if isinstance(name, str) and name in candidates:
            return candidates[name]
        if self.options.strict_class_names:
            self.problems.append(
                f"{path}.{CLASS_KEY}: no {hint.__name__} of this program is called {name!r}. "
                "Import the module that defines it first. "
                f"{did_you_mean(str(name), [*candidates, hint.__name__])}"
            )
        return hint

    def _read_callable(self, value: Any, path: str) -> Any:
        if isinstance(value, str) and self.options.convert:
            if value in models:
                return models.get(value)
            self.problems.append(
                f"{path}: no model is registered as {value!r}. {did_you_mean(value, models)}"
            )
            return value
        return value if callable(value) else self._wrong(path, value, "something callable")

    def _read_scalar(self, hint: Any, value: Any, path: str) -> Any:
        if isinstance(value, np.generic):
            value = value.item()
        if hint is int and value is None and self.options.none_to_zero:
            return 0
        if hint is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if self.options.convert and hint is float and isinstance(value, str):
            return float(value) if value in NON_FINITE else self._wrong(path, value, "a number")
        if self.options.convert and hint is PartitionSpec and isinstance(value, list | tuple):
            return to_spec(value)
        if isinstance(hint, type) and issubclass(hint, Enum) and self.options.convert:
            return self._read_enum(hint, value, path)
        if hint is Path and isinstance(value, str):
            return Path(value)
        try:
            fits = isinstance(value, hint) and not (hint is int and isinstance(value, bool))
        except TypeError:  # a name without a value, or a protocol that cannot be asked
            return value
        return value if fits else self._wrong(path, value, _describe(hint))

    def _read_enum(self, hint: type[Enum], value: Any, path: str) -> Any:
        for member in hint:
            if value is member or (type(value) is type(member.value) and value == member.value):
                return member
        options = [member.value for member in hint]
        self.problems.append(f"{path}: found {value!r}. {did_you_mean(str(value), options)}")
        return value

    def _read_any(self, value: Any, path: str) -> Any:
        if not self.options.convert:
            return value
        if isinstance(value, Mapping):
            name = value.get(CLASS_KEY)
            if isinstance(name, str) and name in self.known:
                return self._read_config(self.known[name], value, path)
            if name is not None and self.options.strict_class_names:
                self._choose_class(self.base, name, path)
            return {key: self.read(Any, item, f"{path}.{key}") for key, item in value.items()}
        if type(value) in (list, tuple):
            return type(value)(self.read(Any, v, f"{path}[{i}]") for i, v in enumerate(value))
        return value


def _type_behind(value: Any) -> type:
    mark = mark_of(value)
    if mark in (TUPLE, PAIRS):
        return tuple if mark == TUPLE else dict
    if mark is None or mark == UNSAVED_KEY:
        return type(value)
    try:
        return type(decode(mark, value[mark]))
    except (ValueError, TypeError):
        return type(value)


def _is_required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _is_whole(key: Any) -> bool:
    return isinstance(key, str) and key.removeprefix("-").isdecimal()


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, list) and len(pair) == 2


def _describe(hint: Any) -> str:
    names = {
        bool: "True or False",
        int: "a whole number",
        float: "a number",
        str: "a text",
        Path: "a path",
    }
    if hint in names:
        return names[hint]
    if typing.get_origin(hint) is Literal:
        return " or ".join(map(repr, typing.get_args(hint)))
    if typing.get_origin(hint) in (type, Callable) or hint in (type, Callable):
        return "something callable"
    return f"a {getattr(hint, '__name__', str(hint))}"
