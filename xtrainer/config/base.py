"""The base of every config: a frozen dataclass that becomes JSON and comes back unchanged."""

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from xtrainer.config.encode import CLASS_KEY, field_types, to_json
from xtrainer.config.parse import ParseOptions, Parser
from xtrainer.config.schema import make_schema
from xtrainer.counts import MAX_COUNT
from xtrainer.errors import ConfigError, did_you_mean, readable
from xtrainer.registry import tell_names
from xtrainer.types import JSON

ConfigT = TypeVar("ConfigT")
_COUNTED = re.compile(r"(^|_)(steps?|epochs?)(_|$)")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Base of all configs. Derive a frozen, keyword-only dataclass from it.

    A subclass states what its values must satisfy in :meth:`problems`; nothing is checked while a
    config is built, so that all mistakes of a run can be reported together by
    :func:`check_configs`. A whole number of NumPy becomes one of Python. A field of whole numbers
    whose name speaks of steps or epochs is checked to be one that can be counted.

    Example:
        >>> @dataclass(frozen=True, kw_only=True)
        ... class WidthConfig(Config):
        ...     width: int = 8
        >>> Config.from_dict(WidthConfig, WidthConfig(width=3).to_dict())
        WidthConfig(width=3)
    """

    @readable
    def __new__(cls: Any, *args: Any, **kwargs: Any) -> "Config":
        """Refuses fields that there are not, with the nearest name.

        Raises:
            ConfigError: Naming each of them.
        """
        if kwargs and "__init__" in vars(cls):
            _check_fields(cls, kwargs)
        return object.__new__(cls)

    def __post_init__(self) -> None:
        """Takes whole numbers of NumPy as those of Python, as they are written and read back."""
        for field in dataclasses.fields(self):
            if isinstance(value := getattr(self, field.name), np.integer):
                object.__setattr__(self, field.name, int(value))

    def get(self, key: str, default: Any = None) -> Any:
        """Returns a field, or ``default`` where there is none of that name."""
        return getattr(self, key, default)

    def to_dict(self) -> dict[str, JSON]:
        """Returns the config as JSON values; ``class_name`` holds the name of the class.

        A value without a JSON form (a function, an optimizer object) is replaced by
        ``{"not_saved": description}``; :meth:`from_dict` then says that it must be given.
        """
        hints = field_types(type(self))
        values = {name: to_json(getattr(self, name), hint) for name, hint in hints.items()}
        return {CLASS_KEY: type(self).__name__, **values}

    @staticmethod
    @readable
    def from_dict(
        config_class: type[ConfigT],
        data: Any,
        strict_classname_parsing: bool = False,
        ignore_extensive_attributes: bool = True,
        none_to_zero_for_ints: bool = False,
    ) -> ConfigT:
        """Returns an object of ``config_class`` that holds ``data``.

        Args:
            config_class: Usually a config class; any annotation works (``int``, ``list[str]``).
            data: What :meth:`to_dict` gave, or a mapping of some of the fields.
            strict_classname_parsing: A ``class_name`` that no class of this program has is an
                error instead of standing for the annotated class.
            ignore_extensive_attributes: Leave out keys that are not fields; otherwise an error.
            none_to_zero_for_ints: Read None as 0 where an int is expected.

        Raises:
            ConfigError: Listing every value that does not fit, with its path.
        """
        options = ParseOptions(
            strict_class_names=strict_classname_parsing,
            unknown_keys="ignore" if ignore_extensive_attributes else "error",
            none_to_zero=none_to_zero_for_ints,
        )
        return parse(config_class, data, options)

    @staticmethod
    @readable
    def from_config_dict(config_class: type[ConfigT], config_dict: Any) -> ConfigT:
        """Returns ``config_class`` filled from a ``ConfigDict`` or mapping; strict.

        Raises:
            ConfigError: For unknown keys, with the nearest name, and values of a wrong type.
        """
        if hasattr(config_dict, "to_dict"):
            config_dict = config_dict.to_dict()
        return parse(config_class, config_dict, ParseOptions(strict_class_names=True))

    @classmethod
    def schema(cls) -> dict[str, JSON]:
        """Returns the JSON Schema (2020-12) of what :meth:`to_dict` gives, for editors and forms.

        With type, default and description of each field. Where a config of another class may stand
        (a callback, say), ``class_name`` chooses among the classes that are defined by now.
        :meth:`from_config_dict` checks more: what it refuses may fit the schema, see
        :meth:`problems`.

        Example:
            >>> @dataclass(frozen=True, kw_only=True)
            ... class HeightConfig(Config):
            ...     height: int = 8
            >>> HeightConfig.schema()["properties"]["height"]
            {'type': 'integer', 'default': 8}
        """
        return make_schema(cls, Config, config_classes())

    def problems(self) -> list[str]:
        """Returns one sentence for each value that cannot work; fields are named without path."""
        return []


def _check_fields(config_class: type[Config], given: Mapping[str, Any]) -> None:
    taken = inspect.signature(config_class.__init__).parameters
    names = [field.name for field in dataclasses.fields(config_class) if field.init]
    if unknown := [name for name in given if name not in taken]:
        raise ConfigError(
            [
                f"{config_class.__name__} has no field {name!r}. {did_you_mean(name, names)}"
                for name in unknown
            ]
        )


def config_classes() -> dict[str, type[Config]]:
    """Returns every config class that the running program has defined, by name.

    Of two classes of one name the newer counts, as in a notebook cell that is run again.
    """
    found: dict[str, type[Config]] = {}
    waiting: list[type[Config]] = [Config]
    while waiting:
        config_class = waiting.pop(0)
        found[config_class.__name__] = config_class
        waiting += config_class.__subclasses__()
    return found


tell_names("config", config_classes)


def parse(config_class: type[ConfigT], data: Any, options: ParseOptions) -> ConfigT:
    """Reads ``data`` as ``config_class`` and reports all mistakes together.

    Raises:
        ConfigError: Listing every value that does not fit.
    """
    parser = Parser(Config, config_classes(), options)
    name = getattr(config_class, "__name__", str(config_class))
    try:
        value = parser.read(config_class, data, name)
    except RecursionError as error:
        raise ConfigError(
            f"{name}: found data that are nested too deep to be read, expected a config. Use fewer "
            "levels of lists and mappings."
        ) from error
    if parser.problems:
        raise ConfigError(parser.problems)
    return value


def check_configs(**configs: Any) -> None:
    """Checks the types and values of configs and of all configs inside them.

    Args:
        configs: Configs by the name under which messages show them; other objects are passed over.

    Raises:
        ConfigError: Listing every mistake of every config.

    Example:
        >>> @dataclass(frozen=True, kw_only=True)
        ... class DepthConfig(Config):
        ...     depth: int = 2
        >>> check_configs(model=DepthConfig(depth="two"))
        Traceback (most recent call last):
        xtrainer.errors.ConfigError: model.depth: found 'two' (str), expected a whole number.
    """
    problems = [line for name, config in configs.items() for line in _collect(config, name)]
    if problems:
        raise ConfigError(problems)


def _collect(value: Any, path: str) -> list[str]:
    own: list[str] = []
    if isinstance(value, Config):
        own = _wrong_types(value, path)
        if not own:  # ``problems`` may compute with the values, nested ones included
            own = [f"{path}.{line}" for line in [*value.problems(), *_too_many(value)]]
    return own + [line for line in _inside(value, path, _collect) if line not in own]


def _too_many(config: Config) -> list[str]:
    """Returns the numbers of steps and epochs that no state can count to."""
    hints = field_types(type(config))
    named = [(name, getattr(config, name)) for name in hints if hints[name] in (int, int | None)]
    kwargs = getattr(config, "kwargs", None)  # of a schedule of Optax, say
    if isinstance(kwargs, Mapping):
        named += [(f"kwargs.{name}", value) for name, value in kwargs.items()]
    return [
        f"{name}: found {value}, expected a whole number <= {MAX_COUNT}."
        for name, value in named
        if _COUNTED.search(name.removeprefix("kwargs."))
        and isinstance(value, int | np.integer)
        and value > MAX_COUNT
    ]


def _wrong_types(value: Any, path: str) -> list[str]:
    found = []
    if isinstance(value, Config):
        parser = Parser(Config, {}, ParseOptions(convert=False))
        for name, hint in field_types(type(value)).items():
            parser.read(hint, getattr(value, name), f"{path}.{name}")
        found = parser.problems
    return found + _inside(value, path, _wrong_types)


def _inside(value: Any, path: str, check: Callable[[Any, str], list[str]]) -> list[str]:
    if isinstance(value, Config):
        names = [field.name for field in dataclasses.fields(value)]
        items = [(getattr(value, name), f"{path}.{name}") for name in names]
    elif isinstance(value, Mapping):
        items = [(item, f"{path}.{key}") for key, item in value.items()]
    elif isinstance(value, list | tuple):
        items = [(item, f"{path}[{i}]") for i, item in enumerate(value)]
    else:
        items = []
    return [line for item, where in items for line in check(item, where)]
