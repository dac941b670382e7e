"""What are the settings of a run, one by one? A config as names and plain values."""

import json
from collections.abc import Mapping

from xtrainer.config.encode import CLASS_KEY
from xtrainer.types import JSON

Setting = bool | int | float | str

LEFT_OUT = "trainer.logger"
"""Where a run is logged to is none of its settings."""


def flat_settings(config: Mapping[str, JSON]) -> dict[str, Setting]:
    """Returns the leaves of a config by their dotted path; those that are None are left out.

    A list of numbers or texts is one text; configs in a list have the name of their class.

    Example:
        >>> flat_settings({"optimizer": {"class_name": "AdamConfig", "lr": 0.1, "betas": [1, 2]}})
        {'optimizer.lr': 0.1, 'optimizer.betas': '[1, 2]'}
        >>> flat_settings({"callbacks": [{"class_name": "EMAConfig", "every": 2}]})
        {'callbacks.0': 'EMAConfig', 'callbacks.0.every': 2}
    """
    found: dict[str, Setting] = {}
    _add(found, "", config)
    return found


def _add(found: dict[str, Setting], path: str, value: JSON) -> None:
    if value is None or path == LEFT_OUT:
        return
    if isinstance(value, Mapping):
        for name, item in value.items():
            if name != CLASS_KEY:
                _add(found, f"{path}.{name}" if path else str(name), item)
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for number, item in enumerate(value):
            if isinstance(item, Mapping):
                _add(found, f"{path}.{number}", item.get(CLASS_KEY))
            _add(found, f"{path}.{number}", item)
    elif isinstance(value, list):
        if value:
            found[path] = json.dumps(value)
    else:
        found[path] = value
