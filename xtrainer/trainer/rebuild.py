"""How is a trainer built anew from a checkpoint? With its configs, its batch and its model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import optax

from xtrainer.callbacks import EMA, EMAConfig
from xtrainer.checkpoint import restore_partial
from xtrainer.config import Config
from xtrainer.counts import MAX_COUNT, as_int
from xtrainer.data import batch_spec, decode_spec
from xtrainer.errors import BatchError, CheckpointNotFoundError, ConfigError
from xtrainer.optim import OptimizerConfig
from xtrainer.state import Progress
from xtrainer.trainer.config import ModelConfig, TrainerConfig
from xtrainer.trainer.saving import MODEL_PARTS, load_callbacks
from xtrainer.trainer.shared import choose_step
from xtrainer.trainer.view import TrainerView
from xtrainer.types import BatchLike, PyTree


def configs_from_meta(
    meta: Mapping[str, Any], model_class: Any
) -> tuple[TrainerConfig, ModelConfig, OptimizerConfig | optax.GradientTransformation]:
    """Returns the configs in a checkpoint, set up to evaluate: nothing is written or called back.

    Args:
        meta: From :func:`xtrainer.checkpoint.read_meta`.
        model_class: The class of the model; None: the registered name that was saved.

    Raises:
        ConfigError: If the class of the model cannot be known without importing by name.
    """
    saved = meta["config"]
    if any(not isinstance(saved.get(part), Mapping) for part in ("trainer", "model")):
        raise ConfigError("The checkpoint holds no configs of a trainer. Build one, and load them.")
    # A folder of compiled programs that a file names would be trusted as this user's own.
    callbacks = _evaluating(saved)
    quiet: dict[str, Any] = {"logger": None, "callbacks": callbacks, "compilation_cache": False}
    quiet |= {"train_exceptions": [], "test_exceptions": []}  # classes cannot be saved
    trainer = {**saved["trainer"], **quiet, "enable_progress_bar": False}
    model = dict(saved["model"])
    if model_class is not None:
        model["model_class"] = model_class
    elif isinstance(model.get("model_class"), Mapping):
        raise ConfigError(
            f"The checkpoint's model is {next(iter(model['model_class'].values()))!r}, which is "
            "not registered under a name, and classes are never imported by what a file says. Pass "
            "model_class=, set the class attribute model_class of the trainer, or decorate the "
            "model with xtrainer.register_model(name)."
        )
    model["model_config"] = _typed(model.get("model_config"))
    optimizer = saved.get("optimizer")
    # Without a saved optimizer the model can still be evaluated.
    transform = (
        optax.identity() if optimizer is None else Config.from_dict(OptimizerConfig, optimizer)
    )
    return Config.from_dict(TrainerConfig, trainer), Config.from_dict(ModelConfig, model), transform


def batch_from_meta(meta: Mapping[str, Any], exmp_input: BatchLike, batch_size: int) -> PyTree:
    """Returns the shapes of a batch: those of an example, or those that were saved.

    Raises:
        BatchError: If there is no example and the saved batch was of a class of the user's, or if
            no batch can be of that size.
    """
    batch_size = as_int(batch_size)
    if type(batch_size) is not int or batch_size > MAX_COUNT:
        raise BatchError(
            f"batch_size: found {batch_size!r}, expected a number of rows, or -1 for those "
            "that were saved."
        )
    spec = decode_spec(meta["batch_spec"]) if exmp_input is None else batch_spec(exmp_input)
    if batch_size < 1:
        return spec
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype), spec)


def best_or_latest(folder: str | Path) -> Path:
    """Returns the best step of a run where one was tracked, else the newest one."""
    try:
        return choose_step(folder, "best")[0]
    except CheckpointNotFoundError:
        return choose_step(folder, "latest")[0]


def load_model_parts(trainer: TrainerView, step_folder: Path, meta: Mapping[str, Any]) -> None:
    """Puts a checkpoint's model, step and progress into a trainer that will evaluate it."""
    parts = (*MODEL_PARTS, "step")
    if any(isinstance(callback, EMA) for callback in trainer.callbacks):
        parts = (*parts, "opt_state")
    parts = restore_partial(step_folder, parts, trainer.state)
    trainer.state = trainer.state.replace(**parts)
    trainer.progress = Progress.from_json(meta["progress"])
    load_callbacks(trainer.callbacks, meta["callbacks"])


def _evaluating(saved: Mapping[str, Any]) -> list[Any]:
    """Returns the saved configs of callbacks by which evaluations give what they gave before."""
    optimizer, callbacks = saved.get("optimizer"), saved["trainer"].get("callbacks")
    averages = isinstance(optimizer, Mapping) and optimizer.get("ema_decay") is not None
    return [
        one
        for one in (callbacks if isinstance(callbacks, list) else [])
        if isinstance(one, Mapping)
        and (
            (averages and one.get("class_name") == EMAConfig.__name__)
            or "is_applied" in one  # a plug-in, which may process batches
        )
    ]


def _typed(value: Any) -> Any:
    """Returns a saved config object as an object; the class is one that the program has defined."""
    if isinstance(value, Mapping) and "class_name" in value:
        return Config.from_dict(Config, value, strict_classname_parsing=True)
    return value
