"""What did the command line change? ``--config.a.b=value`` with ml_collections' types."""

import copy
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from xtrainer.config.redact import redact
from xtrainer.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def parse_config(config: "ConfigDict", argv: Sequence[str] | None = None) -> "ConfigDict":
    """Returns a locked copy of ``config`` with the command line's overrides applied.

    Args:
        config: What an experiment's ``get_config()`` returned.
        argv: Arguments without the program's name; the process's own where None.

    Raises:
        ConfigError: For a path that the config does not have (with the nearest one), a value of a
            wrong type, or an argument that is no ``--config.`` override.

    Example:
        >>> from ml_collections import ConfigDict
        >>> config = ConfigDict({"num_train_steps": 10, "data": {"batch_size": 4}})
        >>> parse_config(config, ["--config.data.batch_size=8"]).data.batch_size
        8
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    changed = copy.deepcopy(config)  # keeps references and placeholders, with their types
    known = set(_paths(changed))
    problems = []
    for argument in arguments:
        name = argument.lstrip("-").split("=", 1)[0].removeprefix("config.")
        if not argument.startswith("--config."):
            shown = redact(argument)
            problems.append(f"Found the argument {shown!r}, expected --config.PATH=VALUE.")
        elif name.split("[")[0] not in known:
            problems.append(f"There is no --config.{name}. {did_you_mean(name, known)}")
        else:
            problems += _apply(changed, name, argument)
    if problems:
        raise ConfigError(problems)
    return changed.lock()


def _apply(config: "ConfigDict", name: str, argument: str) -> list[str]:
    from ml_collections import config_flags  # not with the package: most programs start without

    values = flags.FlagValues()
    old_argv = sys.argv
    sys.argv = [old_argv[0], argument]  # ml_collections looks for overrides there
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, lock_config=False)
        values(sys.argv)
    except (
        # The last two are said of a text with too many brackets.
        flags.Error, TypeError, ValueError, IndexError, KeyError, RecursionError, MemoryError,
    ) as error:  # fmt: skip
        shown = redact(argument)
        if "NoneType" in str(error):
            return [
                f"{shown}: the config holds None there, so the type is unknown. Give "
                f"{name!r} a value or a config_dict.placeholder(type) in get_config()."
            ]
        reason = f": {error}" if shown == argument else "."  # it would repeat the secret
        return [f"{shown} does not fit the config{reason}"]
    finally:
        sys.argv = old_argv
    return []


def _paths(config: "ConfigDict", prefix: str = "") -> list[str]:
    from ml_collections import ConfigDict

    found = []
    # References stay unresolved: a required placeholder has no value yet.
    for key, value in config.items(preserve_field_references=True):
        found.append(f"{prefix}{key}")
        if isinstance(value, ConfigDict):
            found += _paths(value, f"{prefix}{key}.")
    return found
