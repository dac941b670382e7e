"""How does a command line describe a job of SLURM? ``--slurm.nodes=2 --slurm.gpus_per_node=8``."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from xtrainer.errors import ConfigError, did_you_mean
from xtrainer.launch.slurm import SlurmJob

PREFIX = "--slurm."
_FIELDS = {field.name: field for field in dataclasses.fields(SlurmJob)}
_LISTS, _VARIABLES = ("setup", "options"), "environ"
_BOOLS = {"true": True, "false": False}


def slurm_job(settings: Sequence[str]) -> SlurmJob:
    """Returns the job that settings describe, ``--slurm.FIELD=VALUE`` with the fields of SlurmJob.

    ``setup`` and ``options`` may be given several times; ``--slurm.environ.NAME=VALUE`` sets a
    variable.

    Raises:
        ConfigError: Listing every setting that cannot be followed.

    Example:
        >>> job = slurm_job(["--slurm.nodes=2", "--slurm.environ.DATA=/data", "--slurm.qos=night"])
        >>> job.nodes, job.environ, job.qos
        (2, {'DATA': '/data'}, 'night')
    """
    values: dict[str, Any] = {}
    problems = []
    for setting in settings:
        path, equals, text = setting.removeprefix(PREFIX).partition("=")
        name, _, key = path.partition(".")
        if name not in _FIELDS or not equals or bool(key) != (name == _VARIABLES):
            problems.append(_unknown(setting, name))
        elif name == _VARIABLES:
            values.setdefault(name, {})[key] = text
        elif name in _LISTS:
            values.setdefault(name, []).append(text)
        else:
            try:
                values[name] = _typed(name, text)
            except ValueError as error:
                problems.append(f"{PREFIX}{name}: {error}")
    if problems:
        raise ConfigError(problems)
    return SlurmJob(**values)


def _unknown(setting: str, name: str) -> str:
    if name in _FIELDS:
        form = f"{_VARIABLES}.NAME=VALUE" if name == _VARIABLES else f"{name}=VALUE"
        return f"found {setting!r}, expected {PREFIX}{form}."
    return f"There is no {PREFIX}{name}. {did_you_mean(name, _FIELDS)}"


def _typed(name: str, text: str) -> Any:
    kind = str(_FIELDS[name].type)
    if kind == str(bool):
        if text.lower() not in _BOOLS:
            raise ValueError(f"found {text!r}, expected true or false.")
        return _BOOLS[text.lower()]
    if "int" in kind:
        try:
            return int(text)
        except ValueError:
            raise ValueError(f"found {text!r}, expected a whole number.") from None
    return text
