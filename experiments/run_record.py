"""Which experiment made a run folder? One small JSON file in it, for ``evaluate.py``."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from xtrainer.errors import CheckpointError
from xtrainer.launch import broadcast, is_main_process

RECORD_FILE = "experiment.json"


def new_run_folder(experiment: str) -> str:
    """Returns a folder name below ``runs`` that no earlier run has, by the time of day (UTC).

    It is the main process's time of day, so that all processes of a run get one name.
    """
    name = f"runs/{experiment}-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"
    return str(broadcast(name, "run folder"))


def write_record(run_folder: str | Path | None, experiment: str, config: ConfigDict) -> None:
    """Writes the experiment's name and resolved config into the run folder, from one process."""
    if run_folder is None or not is_main_process():
        return
    folder = Path(run_folder)
    folder.mkdir(parents=True, exist_ok=True)
    record = {"experiment": experiment, "config": config.to_dict()}
    (folder / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n")


def read_record(run_folder: str | Path) -> tuple[str, Any]:
    """Returns the experiment's name and config that :func:`write_record` wrote.

    Raises:
        CheckpointError: If the folder holds no such file, or the file is not whole.
    """
    path = Path(run_folder) / RECORD_FILE
    try:
        record = json.loads(path.read_text())
        return str(record["experiment"]), ConfigDict(record["config"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"Found no usable {RECORD_FILE} in {run_folder} ({error}), expected the folder that a "
            "training run printed as its run folder. Check the path."
        ) from error


def say(line: str) -> None:
    """Prints a line, once for all processes of a run."""
    if is_main_process():
        print(line)


def say_where(run_folder: str | Path | None) -> None:
    """Prints where a run is, and how its best checkpoint is evaluated again."""
    say(f"run folder: {run_folder}")
    say(f"evaluate the best checkpoint: python experiments/evaluate.py {run_folder}")


def show(title: str, metrics: Mapping[str, float]) -> None:
    """Prints metrics to the last digit, one a line."""
    for name in sorted(metrics):
        say(f"{title} {name}: {metrics[name]!r}")
