"""What may a config's JSON hold? A JSON Schema of its annotations, defaults and docstrings."""

import ast
import dataclasses
import inspect
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union

from jax.sharding import PartitionSpec

from xtrainer.config.encode import CLASS_KEY, MARKS, NON_FINITE, UNSAVED_KEY, field_types, to_json
from xtrainer.types import JSON

DIALECT = "https://json-schema.org/draft/2020-12/schema"
MARKED = "marked"
"""Name of the definition of values that JSON lacks, such as ``{"$tuple": [1, 2]}``."""
_SIMPLE = {
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    str: {"type": "string"},
    Path: {"type": "string"},
    None: {"type": "null"},
    type(None): {"type": "null"},
    # As infinities are written; JSON has no number for them.
    float: {"anyOf": [{"type": "number"}, {"enum": list(NON_FINITE)}]},
}
_ALIKE = (bool, int, str, list, None, type(None))
"""What is written as plain JSON wherever it stands."""


def make_schema(config_class: type, base: type, known: Mapping[str, type]) -> dict[str, JSON]:
    """Returns the JSON Schema of a config class, see ``Config.schema``.

    Args:
        config_class: A dataclass.
        base: The base class of all configs.
        known: Config classes by name; where one of them stands, so may those derived from it.
    """
    writer = _Writer(base, known)
    body = writer.body(config_class)
    return {"$schema": DIALECT, **body, "$defs": dict(sorted(writer.definitions.items()))}


class _Writer:
    """Writes schemas by annotation, and collects the classes that they refer to."""

    def __init__(self, base: type, known: Mapping[str, type]) -> None:
        self.base = base
        self.known = known
        self.definitions: dict[str, JSON] = {}
        self._named: dict[str, type] = {}

    def body(self, config_class: type) -> dict[str, JSON]:
        """Returns the schema of a dataclass, with a property for each field."""
        said = descriptions(config_class)
        hints = field_types(config_class)
        properties: dict[str, JSON] = {}
        required = []
        if issubclass(config_class, self.base):
            properties[CLASS_KEY] = {"const": config_class.__name__}
        for field in dataclasses.fields(config_class):
            written = dict(self.of(hints[field.name]))
            if field.name in said:
                written["description"] = said[field.name]
            if _is_required(field):
                required.append(field.name)
            elif not _has_unsaved(default := to_json(_default(field), hints[field.name])):
                written["default"] = default
            properties[field.name] = written
        found = {"title": config_class.__name__, "type": "object", "properties": properties}
        if about := _about(config_class):
            found["description"] = about
        return {**found, "required": required, "additionalProperties": False}

    def of(self, hint: Any, loose: bool = False) -> dict[str, JSON]:
        """Returns the schema of what may stand under an annotation.

        Args:
            hint: The annotation.
            loose: It is one of several, so that what JSON lacks may be marked.
        """
        origin, args = typing.get_origin(hint), typing.get_args(hint)
        if origin in (Union, types.UnionType):
            several = sum(arg is not type(None) for arg in args) > 1
            return _any_of([self.of(arg, loose or several) for arg in args])
        if hint is Any or isinstance(hint, typing.TypeVar):
            return {}
        found = self._plain(hint, origin, args, loose)
        return _any_of([found, self._marked()]) if loose and not _is_alike(hint, origin) else found

    def _plain(self, hint: Any, origin: Any, args: tuple, loose: bool) -> dict[str, JSON]:
        if hint in _SIMPLE:
            return dict(_SIMPLE[hint])
        if origin is Literal:
            return {"enum": list(args)}
        if origin in (list, Sequence, Iterable) or hint is list:
            return {"type": "array", "items": self.of(args[0] if args else Any, loose)}
        if origin is tuple or hint is tuple:
            return self._tuple(args, loose)
        if origin in (dict, Mapping) or hint in (dict, Mapping):
            return self._mapping(args or (Any, Any), loose)
        if origin in (type, Callable) or hint in (type, Callable):
            return _any_of([{"type": "string"}, self._marked()])  # the name of a registered model
        if isinstance(hint, type) and issubclass(hint, Enum):
            return {"enum": [member.value for member in hint]}
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            return self._family(hint)
        axes = {"type": "array"} if hint is PartitionSpec else None
        return self._marked() if axes is None else _any_of([axes, self._marked()])

    def _tuple(self, args: tuple, loose: bool) -> dict[str, JSON]:
        if not args or args[-1] is Ellipsis:
            return {"type": "array", "items": self.of(args[0] if args else Any, loose)}
        each = [self.of(arg, loose) for arg in args]
        return {"type": "array", "prefixItems": each, "minItems": len(each), "maxItems": len(each)}

    def _mapping(self, args: tuple, loose: bool) -> dict[str, JSON]:
        found: dict[str, JSON] = {"type": "object", "additionalProperties": self.of(args[1], loose)}
        if args[0] is int:
            return found | {"propertyNames": {"pattern": "^-?[0-9]+$"}}
        return found if args[0] in (str, Any) else _any_of([found, self._marked()])

    def _family(self, hint: type) -> dict[str, JSON]:
        """Returns a reference to a class, or to one of those that a ``class_name`` may choose."""
        children = [c for c in self.known.values() if issubclass(c, hint) and c is not hint]
        children.sort(key=lambda child: child.__name__)
        named = [{"$ref": self._refer(c), "required": [CLASS_KEY]} for c in children]
        return _any_of([{"$ref": self._refer(hint)}, *named])

    def _refer(self, config_class: type) -> str:
        name = config_class.__name__
        while self._named.get(name, config_class) is not config_class:
            name += "_"  # two classes of one name
        if name not in self._named:
            self._named[name] = config_class  # first: a config may hold others of its own class
            self.definitions[name] = self.body(config_class)
        return f"#/$defs/{name}"

    def _marked(self) -> dict[str, JSON]:
        self.definitions[MARKED] = {
            "description": "What JSON lacks: a tuple, an infinity, a path, a dtype, axes, a map "
            "whose keys are no texts; or the description of a value that must be given again.",
            "type": "object",
            "propertyNames": {"enum": list(MARKS)},
            "minProperties": 1,
            "maxProperties": 1,
        }
        return {"$ref": f"#/$defs/{MARKED}"}


def descriptions(config_class: type) -> dict[str, str]:
    """Returns the docstring below each field, in one line; none where there is no source.

    Example:
        >>> from xtrainer.optim import SchedulerConfig
        >>> descriptions(SchedulerConfig)["cooldown_lr"]
        'Where the cooldown ends.'
    """
    found: dict[str, str] = {}
    for part in reversed(config_class.__mro__):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(part)))
        except (OSError, TypeError, SyntaxError):  # made by a function, typed at a prompt, built in
            continue
        owner = tree.body[0]
        if isinstance(owner, ast.ClassDef):
            for field, after in zip(owner.body, owner.body[1:], strict=False):
                text = _text(after)
                if isinstance(field, ast.AnnAssign) and text is not None:
                    found[ast.unparse(field.target)] = " ".join(text.split())
    return found


def _text(node: ast.stmt) -> str | None:
    constant = node.value if isinstance(node, ast.Expr) else None
    said = constant.value if isinstance(constant, ast.Constant) else None
    return said if isinstance(said, str) else None


def _about(config_class: type) -> str:
    """Returns the first paragraph of a class's own docstring."""
    text = inspect.cleandoc(vars(config_class).get("__doc__") or "")
    # ``dataclass`` writes the signature where nothing was written.
    own = not text.startswith(f"{config_class.__name__}(")
    return " ".join(text.split("\n\n")[0].split()) if own else ""


def _any_of(options: Sequence[dict[str, JSON]]) -> dict[str, JSON]:
    """Returns a schema that takes what one of several takes, as short as it can be."""
    flat: list[dict[str, JSON]] = []
    for option in options:
        parts = option["anyOf"] if list(option) == ["anyOf"] else [option]
        flat += [part for part in parts if part not in flat]
    if {} in flat:
        return {}
    return flat[0] if len(flat) == 1 else {"anyOf": flat}


def _is_alike(hint: Any, origin: Any) -> bool:
    return hint in _ALIKE or origin in (list, Literal)


def _is_required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _has_unsaved(value: JSON) -> bool:
    if isinstance(value, Mapping):
        return UNSAVED_KEY in value or any(map(_has_unsaved, value.values()))
    return isinstance(value, list) and any(map(_has_unsaved, value))
