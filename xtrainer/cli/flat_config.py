"""How is a config shown, and compared with another? By the path of each setting."""

from collections.abc import Iterator, Mapping
from typing import Any

from xtrainer.config.base import config_classes
from xtrainer.config.encode import CLASS_KEY
from xtrainer.errors import ConfigError


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Returns the settings of a config by their paths, as ``--config.`` names them.

    Lists of configs are opened, other lists are values, as are empty mappings.

    Args:
        config: JSON.
        prefix: Of the paths.

    Example:
        >>> flatten({"trainer": {"seed": 0, "callbacks": [{"every": 3}], "modes": ["mean"]}})
        {'trainer.seed': 0, 'trainer.callbacks[0].every': 3, 'trainer.modes': ['mean']}
    """
    return {path: value for path, value, _ in _settings(config, prefix, ...)}


def changed(config: Any) -> dict[str, Any]:
    """Returns those settings that are not the defaults of xtrainer's own configs.

    Of what is no such config all settings are returned.

    Example:
        >>> import xtrainer.optim
        >>> changed({"scheduler": {"class_name": "SchedulerConfig", "lr": 0.5, "name": "constant"}})
        {'scheduler.lr': 0.5}
    """
    found = _settings(config, "", ...)
    return {path: value for path, value, default in found if value != default}


def _settings(value: Any, path: str, default: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yields path, value and default of each setting; ``...`` where there is no default."""
    if isinstance(value, Mapping) and value:
        named = _defaults_of(value.get(CLASS_KEY))
        if named is not None:
            default = named
        for key, item in value.items():
            inner = default.get(key, ...) if isinstance(default, Mapping) else ...
            yield from _settings(item, f"{path}.{key}" if path else str(key), inner)
    elif isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
        for index, item in enumerate(value):
            if CLASS_KEY in item:  # which says what stands there
                yield f"{path}[{index}]", item[CLASS_KEY], ...
            yield from _settings(item, f"{path}[{index}]", ...)
    else:
        yield path, value, default


def _defaults_of(name: Any) -> Mapping[str, Any] | None:
    """Returns the defaults of a config class that this program has defined."""
    known = config_classes().get(name) if isinstance(name, str) else None
    try:
        return None if known is None else known().to_dict()
    except (TypeError, ConfigError):  # a class of the user's, which needs arguments
        return None
