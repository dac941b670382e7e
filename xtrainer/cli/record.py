"""With which settings was an experiment run? A file in the run folder; only values are read."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from xtrainer.checkpoint.commit import read_json
from xtrainer.checkpoint.durable import write_json
from xtrainer.cli.usage import UsageError
from xtrainer.config.redact import HIDDEN, redact
from xtrainer.errors import CheckpointError, CheckpointNotFoundError

RECORD_FILE = "experiment.json"
_OF_TRAINER = ("trainer", "model", "optimizer")
"""Sections that a checkpoint holds, too, and better: as typed configs."""


def write_record(folder: Path, experiment: str, config: ConfigDict) -> None:
    """Writes the name of an experiment and its settings, but secrets and what is not JSON.

    Args:
        folder: Of the run; made if it is not there.
        experiment: Its name.
        config: All of its settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record = {"experiment": experiment, "config": redact(_plain(config.to_dict()))}
    write_json(folder / RECORD_FILE, record)


def read_record(folder: Path) -> tuple[str, dict[str, Any]] | None:
    """Returns the name of the experiment and its settings, None where there is no such file.

    Raises:
        UsageError: If there is one that cannot be read.
    """
    try:
        record = read_json(folder / RECORD_FILE)
        if not isinstance(record.get("config"), dict):
            raise CheckpointError(f"{folder / RECORD_FILE}: found no object 'config'.")
        return str(record.get("experiment")), record["config"]
    except CheckpointNotFoundError:
        return None
    except CheckpointError as error:
        raise UsageError(f"{error} Move the file away, and give the settings again.") from error


def apply_record(config: ConfigDict, saved: Mapping[str, Any]) -> None:
    """Gives an experiment's config the values that a run had; settings that it lacks are left out.

    Args:
        config: Of the experiment; changed.
        saved: Settings of the run.

    Raises:
        UsageError: If a value is of another type than the experiment's setting.

    Example:
        >>> config = ConfigDict({"data": {"rows": 4, "shape": (1, 2)}})
        >>> apply_record(config, {"data": {"rows": 8, "shape": [3, 4], "gone": 1}})
        >>> config.data.rows, config.data.shape
        (8, (3, 4))
    """
    problems = []
    with config.unlocked():
        for node, path, key, value in _shared(config, saved, ""):
            try:
                node[key] = tuple(value) if isinstance(node[key], tuple) else value
            except (TypeError, ValueError, KeyError) as error:
                if path.split(".")[0] not in _OF_TRAINER:
                    problems.append(f"config.{path}: {error}")
    if problems:
        raise UsageError(
            "The run's settings do not fit this experiment file. Is it the one that the run was "
            "started from?\n" + "\n".join(f"  - {problem}" for problem in problems)
        )


def _shared(
    config: ConfigDict, saved: Mapping[str, Any], prefix: str
) -> Iterator[tuple[ConfigDict, str, str, Any]]:
    """Yields node, path, key and value of the saved settings that a config has."""
    for key, value in saved.items():
        path = f"{prefix}{key}"
        if key not in config:
            continue
        now = None
        with contextlib.suppress(ValueError):  # a placeholder that must be given, and is here
            now = config[key]
        if isinstance(now, ConfigDict):
            if isinstance(value, Mapping):
                yield from _shared(now, value, f"{path}.")
        elif not isinstance(value, Mapping) and value != HIDDEN:
            yield config, path, key, value


def _plain(value: Any) -> Any:
    """Returns what of a value is JSON; a list that holds something else is left out as a whole."""
    if isinstance(value, Mapping):
        plain = {str(key): _plain(item) for key, item in value.items()}
        return {key: item for key, item in plain.items() if item is not ...}
    if isinstance(value, list | tuple):
        items = [_plain(item) for item in value]
        return ... if ... in items else items
    with contextlib.suppress(TypeError, ValueError):
        json.dumps(value, allow_nan=False)
        return value
    return ...
