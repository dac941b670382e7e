"""What was asked? Typed, frozen configs, their way to JSON and back, and the command line.

Synopsis:
    @dataclass(frozen=True, kw_only=True)
    class MyConfig(Config):
        size: int = 8

    config = Config.from_config_dict(MyConfig, config_dict)   # strict
    Config.from_dict(MyConfig, config.to_dict()) == config
    check_configs(trainer=config)                             # every mistake at once
"""

from xtrainer.config.base import Config, check_configs
from xtrainer.config.bridge import from_config_dict, to_config_dict
from xtrainer.config.override import parse_config

__all__ = ["Config", "check_configs", "from_config_dict", "parse_config", "to_config_dict"]
