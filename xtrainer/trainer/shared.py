"""What must be one thing on every process? Configs, the chosen step, the loaders' positions."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from xtrainer.checkpoint import choose_usable
from xtrainer.data import LoaderPosition
from xtrainer.errors import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointNotFoundError,
    ConfigError,
    NoUsableCheckpointError,
)
from xtrainer.launch import (
    broadcast,
    gather,
    gather_results,
    is_main_process,
    process_count,
    process_index,
)
from xtrainer.types import JSON

StepIndex = int | Literal["best", "latest"]
"""A step, the best or the newest one; -1 is the newest one as well."""


def check_same_configs(make: Callable[[], JSON]) -> None:
    """Checks that every process of the run was configured alike.

    Args:
        make: Returns the configs of this process.

    Raises:
        ConfigError: With every setting that differs from the main process's, on all processes.
    """
    said = gather_results(make, "configs of the trainer")
    main = dict(_settings(said[0]))
    problems = []
    for process, other in enumerate(said):
        own = dict(_settings(other))
        for path in sorted(main.keys() | own.keys()):
            if main.get(path) != own.get(path):
                problems.append(
                    f"{path}: found {own.get(path)!r} on process {process} and {main.get(path)!r} "
                    "on process 0, expected one value for the run."
                )
    if problems:
        raise ConfigError(problems)


def _settings(config: JSON, path: str = "") -> Iterator[tuple[str, JSON]]:
    if not isinstance(config, Mapping):
        yield path, config
        return
    for name, value in config.items():
        yield from _settings(value, f"{path}.{name}" if path else str(name))


def choose_step(
    folder: str | Path, which: StepIndex, skip: Collection[int] = ()
) -> tuple[Path, dict[Path, list[str]]]:
    """Returns the folder of a verified step, and what is wrong with those that came before it.

    The main process looks, so that all take the same one.

    Raises:
        CheckpointNotFoundError: If there is no such checkpoint.
        CheckpointCorruptError: If the one that was asked for is damaged.
        NoUsableCheckpointError: If there are checkpoints, and all are damaged.
    """
    said: dict[str, JSON] = {}
    if is_main_process():
        try:
            found = choose_usable(Path(folder).expanduser(), which, skip)
            damaged = {str(path): problems for path, problems in found.damaged.items()}
            said = {"folder": str(found.folder), "damaged": damaged}
        except CheckpointError as error:
            said = {"kind": type(error).__name__, "message": str(error)}
    said = broadcast(said, f"checkpoint {which!r} of {folder}")
    if "kind" in said:
        raise _ERRORS.get(said["kind"], CheckpointError)(said["message"])
    return Path(said["folder"]), {Path(path): p for path, p in said["damaged"].items()}


_ERRORS = {
    error.__name__: error
    for error in (CheckpointNotFoundError, CheckpointCorruptError, NoUsableCheckpointError)
}


def merge_loaders(
    positions: Mapping[str, JSON], data: Mapping[str, JSON]
) -> tuple[dict[str, JSON], dict[str, JSON]]:
    """Returns what all processes say of the loaders: one thing where it is equal, else each.

    Args:
        positions: Of this process, by name.
        data: What it has, by name.
    """
    said = gather([positions, data], "positions of the loaders")
    first, second = ([parts[i] for parts in said] for i in range(2))
    return _merged(first), _merged(second)


def _merged(parts: Sequence[Mapping[str, JSON]]) -> dict[str, JSON]:
    merged: dict[str, JSON] = {}
    for name in parts[0]:
        each = [part.get(name) for part in parts]
        merged[name] = each[0] if each.count(each[0]) == len(each) else {"per_process": each}
    return merged


def own_data(meta: Mapping[str, JSON]) -> dict[str, str]:
    """Returns the data that this process's loaders had, as far as the checkpoint says.

    Raises:
        CheckpointError: If that is not what was saved.
    """
    found = {}
    for name, said in meta.get("data", {}).items():
        each = said.get("per_process") if isinstance(said, Mapping) else [said] * process_count()
        if not isinstance(each, list) or not all(isinstance(one, str | None) for one in each):
            raise CheckpointError(
                f"Found {said!r:.80} as the data of the {name!r} loader, expected a text. The "
                "checkpoint is damaged; use another step."
            )
        if len(each) == process_count() and None not in each:  # for all processes, or for none
            found[name] = each[process_index()]
    return found


def own_position(name: str, saved: JSON) -> LoaderPosition:
    """Returns this process's position in a loader.

    Raises:
        CheckpointError: If each process had its own, and there were more or fewer of them.
    """
    if not isinstance(saved, Mapping) or "per_process" not in saved:
        return LoaderPosition.from_json(saved)
    each = saved["per_process"]
    if len(each) != process_count():
        raise CheckpointError(
            f"The {name!r} loader had a position of its own on each of {len(each)} processes, and "
            f"this run has {process_count()}. Use as many, leave the loader's position out (load "
            "with load_optimizer=False), or train with a loader that has set_shard and one "
            "position for all."
        )
    return LoaderPosition.from_json(each[process_index()])
