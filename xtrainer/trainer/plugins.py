"""What do plug-ins change? The configs before a trainer is built, and each batch after it."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from xtrainer.callbacks import Callback, Plugin, PluginConfig
from xtrainer.config import check_configs
from xtrainer.data import Phase
from xtrainer.errors import ConfigError
from xtrainer.trainer.config import ModelConfig, TrainerConfig
from xtrainer.types import BatchLike

_MOST = 50
"""Plug-ins of a trainer, those included that others have added."""


def configured(
    trainer_config: TrainerConfig, model_config: ModelConfig
) -> tuple[TrainerConfig, ModelConfig]:
    """Returns the configs as the plug-ins among the callbacks want them, in their order.

    What a plug-in adds to the callbacks is applied as well.

    Raises:
        ConfigError: If a plug-in returns something else than a config, or the configs have mistakes
            afterwards.
    """
    for _ in range(_MOST):
        plugin = next(filter(_is_waiting, trainer_config.callbacks), None)
        if plugin is None:
            return trainer_config, model_config
        trainer_config = _checked(plugin, "configure_trainer", trainer_config)
        model_config = _checked(plugin, "configure_model", model_config)
        check_configs(trainer=trainer_config, model=model_config)
        callbacks = list(trainer_config.callbacks)
        if plugin in callbacks:  # else it has taken itself out
            done = dataclasses.replace(plugin, is_applied=True)
            callbacks[callbacks.index(plugin)] = done
        trainer_config = dataclasses.replace(trainer_config, callbacks=callbacks)
    raise ConfigError(
        f"trainer.callbacks: found plug-ins that have added more than {_MOST} others, expected an "
        "end. Let configure_trainer add a plug-in only where it is not there."
    )


def _is_waiting(config: Any) -> bool:
    return isinstance(config, PluginConfig) and not config.is_applied


def _checked(plugin: Any, method: str, config: Any) -> Any:
    found = getattr(plugin, method)(config)
    if not isinstance(found, type(config)):
        raise ConfigError(
            f"{type(plugin).__name__}.{method}: found a {type(found).__name__} as what it returns, "
            f"expected a {type(config).__name__}. Return the config, changed or not."
        )
    return found


def by_name(callbacks: Sequence[Callback]) -> dict[str, Plugin]:
    """Returns the plug-ins among callbacks by class; a second one of a class is ``NAME_1``."""
    found: dict[str, Plugin] = {}
    for callback in callbacks:
        if isinstance(callback, Plugin):
            name = type(callback).__name__
            others = sum(type(other) is type(callback) for other in found.values())
            found[f"{name}_{others}" if others else name] = callback
    return found


def processing(callbacks: Sequence[Callback]) -> Callable[[BatchLike, Phase], BatchLike] | None:
    """Returns what the plug-ins among callbacks make of a batch, one after the other.

    None where none of them makes anything of it.
    """
    plugins = [c for c in callbacks if isinstance(c, Plugin)]
    steps = [p.process_batch for p in plugins if type(p).process_batch is not Plugin.process_batch]
    if not steps:
        return None

    def process(batch: BatchLike, phase: Phase) -> BatchLike:
        for step in steps:
            try:
                batch = step(batch, phase)
            except StopIteration as error:  # would pass for the end of the loader
                raise RuntimeError("process_batch of a plug-in raised StopIteration.") from error
        return batch

    return process
