"""How do typed configs and ``ml_collections.ConfigDict`` become each other?"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from xtrainer.config.base import Config
from xtrainer.config.encode import CLASS_KEY

if TYPE_CHECKING:
    from ml_collections import ConfigDict

ConfigT = TypeVar("ConfigT")


def to_config_dict(config: Config) -> "ConfigDict":
    """Returns the config as a ``ConfigDict``, the language of experiment files.

    Only configs become mappings (``class_name`` names their class); all other values stay as they
    are, tuples and functions too.

    Example:
        >>> @dataclasses.dataclass(frozen=True, kw_only=True)
        ... class StrideConfig(Config):
        ...     strides: tuple[int, ...] = (2, 2)
        >>> to_config_dict(StrideConfig()).strides
        (2, 2)
    """
    from ml_collections import ConfigDict  # not with the package: most programs start without

    return ConfigDict(_open(config))


def from_config_dict(config_class: type[ConfigT], config_dict: Any) -> ConfigT:
    """Returns a typed config; see :meth:`xtrainer.config.Config.from_config_dict`.

    Raises:
        ConfigError: For unknown keys, with the nearest name, and values of a wrong type.

    Example:
        >>> @dataclasses.dataclass(frozen=True, kw_only=True)
        ... class DropConfig(Config):
        ...     rate: float = 0.1
        >>> from ml_collections import ConfigDict
        >>> from_config_dict(DropConfig, ConfigDict({"rate": 0.5}))
        DropConfig(rate=0.5)
    """
    return Config.from_config_dict(config_class, config_dict)


def _open(value: Any) -> Any:
    if isinstance(value, Config):
        names = [field.name for field in dataclasses.fields(value)]
        fields = {name: _open(getattr(value, name)) for name in names}
        return {CLASS_KEY: type(value).__name__, **fields}
    if isinstance(value, Mapping):
        return {key: _open(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_open(item) for item in value)
    return value
