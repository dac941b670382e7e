"""What does an experiment file offer? A config, a trainer, loaders, and a run of all of them."""

import contextlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from xtrainer.cli.usage import UsageError
from xtrainer.config import Config, check_configs, parse_config
from xtrainer.errors import ConfigError
from xtrainer.optim import OptimizerConfig
from xtrainer.trainer import ModelConfig, TrainerConfig, TrainerModule

SECTIONS = {"trainer": TrainerConfig, "model": ModelConfig, "optimizer": OptimizerConfig}
"""What the sections of an experiment's config are read as."""

_WANTED = {
    "get_config": "get_config() returning a ConfigDict with the sections trainer, model, "
    "optimizer and data, and num_epochs or num_train_steps",
    "make_trainer": "make_trainer(config, mesh=None) returning the TrainerModule, built with that "
    "mesh and an example batch, which may be of jax.ShapeDtypeStruct",
}


class Experiment(NamedTuple):
    """An experiment file that has been run.

    Attributes:
        path: The file.
        get_config: Returns the settings.
        make_trainer: From settings and a mesh to a trainer.
        run: Trains as settings say; None where the file has no such function.
        make_loaders: From the settings' section ``data`` to loaders by the name of their set; None
            where the file has no such function.
    """

    path: Path
    get_config: Callable[[], ConfigDict]
    make_trainer: Callable[..., TrainerModule]
    run: Callable[[ConfigDict], Any] | None = None
    make_loaders: Callable[[Any], dict[str, Any]] | None = None


def load_experiment(path: str | Path) -> Experiment:
    """Runs an experiment file, as ``python FILE`` would but for its main part.

    The file's folder is put where Python looks first, so that it finds its neighbours.

    Raises:
        UsageError: If there is no such Python file, it cannot be run, or it lacks one of the two
            functions.
    """
    path = Path(path).expanduser().resolve()
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    name = _name_of(path)
    spec = importlib.util.spec_from_file_location(name, path) if path.is_file() else None
    if spec is None or spec.loader is None:
        raise UsageError(f"Found no Python file {str(path)!r}, expected an experiment file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where annotations of the file's classes are looked up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        sys.modules.pop(name, None)
        raise UsageError(f"{path} cannot be run:\n{_told(error, path)}") from error
    missing = [what for what in _WANTED if not callable(getattr(module, what, None))]
    if missing:
        raise UsageError(
            f"{path}: found no function {' and no '.join(missing)}. Add "
            + "; and ".join(_WANTED[what] for what in missing)
            + "."
        )
    others = (getattr(module, name, None) for name in ("run", "make_loaders"))
    return Experiment(path, module.get_config, module.make_trainer, *others)


def _told(error: Exception, path: Path) -> str:
    """Returns an error with its traceback, which begins in a file."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = [index for index, frame in enumerate(frames) if frame.filename == str(path)]
    shown = traceback.format_list(frames[inside[0] :]) if inside else []
    return "".join([*shown, *traceback.format_exception_only(error)]).rstrip()


def _name_of(path: Path) -> str:
    """Returns the name of an experiment's module: one that processes of a loader can import."""
    importlib.invalidate_caches()  # the file may be new
    if path.stem.isidentifier() and path.stem not in sys.modules:
        found = importlib.util.find_spec(path.stem)
        if found is not None and found.origin is not None and Path(found.origin) == path:
            return path.stem
    return f"xtrainer_experiment_{path.stem}"


def read_config(
    config: ConfigDict, overrides: Sequence[str], needs_model: bool = True
) -> tuple[ConfigDict, list[str]]:
    """Returns the config with the overrides, and every mistake in either.

    Args:
        config: Of the experiment.
        overrides: As on the command line, ``--config.PATH=VALUE``.
        needs_model: Whether the section ``model`` must be there.

    Example:
        >>> read_config(ConfigDict({"steps": 1}), ["--config.steps=2"], needs_model=False)[0].steps
        2
    """
    try:
        config, problems = parse_config(config, overrides), []
    except ConfigError as error:
        problems = list(error.problems)
        for override in overrides:  # what can be followed may hold further mistakes
            with contextlib.suppress(ConfigError):
                config = parse_config(config, [override])
    return config, problems + config_problems(config, needs_model)


def checked_config(
    config: ConfigDict, overrides: Sequence[str], needs_model: bool = True
) -> ConfigDict:
    """Returns the config with the overrides; the arguments are those of :func:`read_config`.

    Raises:
        UsageError: Listing every mistake in either.
    """
    config, problems = read_config(config, overrides, needs_model)
    if problems:
        raise UsageError(str(ConfigError(problems)))
    return config


def config_problems(config: ConfigDict, needs_model: bool = True) -> list[str]:
    """Returns every mistake in the sections of an experiment's config, keys that no field has too.

    Args:
        config: Of the experiment.
        needs_model: Whether the section ``model`` must be there.

    Example:
        >>> config_problems(ConfigDict({"model": {}, "optimizer": {"nmae": "sgd"}}))[0][:56]
        'config.optimizer.nmae: OptimizerConfig has no such field'
    """
    found, read = [], {}
    for section, config_class in SECTIONS.items():
        if section not in config:
            continue
        try:
            read[section] = Config.from_config_dict(config_class, config[section])
        except ConfigError as error:
            start = config_class.__name__
            found += [
                f"config.{section}{line.removeprefix(start)}" if line.startswith(start) else line
                for line in error.problems
            ]
    try:
        check_configs(**{f"config.{section}": value for section, value in read.items()})
    except ConfigError as error:
        found += error.problems
    if needs_model and "model" not in config:
        found.append(
            "config.model: found no such section, expected the fields of ModelConfig. The mesh is "
            "built from config.model.parallel."
        )
    return found
