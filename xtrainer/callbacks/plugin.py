"""What can change a run from outside of its trainer? Its configs, its batches, and its hooks."""

from dataclasses import dataclass
from typing import Any

from xtrainer.callbacks.base import Callback, CallbackConfig
from xtrainer.data import Phase
from xtrainer.types import BatchLike


@dataclass(frozen=True, kw_only=True)
class PluginConfig(CallbackConfig):
    """Base of the configs of plug-ins; among ``TrainerConfig.callbacks`` it may change the others.

    Derive it, and override what is needed; ``create`` returns a :class:`Plugin`.

    Example:
        >>> import dataclasses
        >>> @dataclass(frozen=True, kw_only=True)
        ... class ReseedConfig(PluginConfig):
        ...     seed: int = 7
        ...
        ...     def configure_trainer(self, trainer_config):
        ...         return dataclasses.replace(trainer_config, seed=self.seed)
        ...
        ...     def create(self, trainer, data_module=None):
        ...         return Plugin(self, trainer, data_module)
    """

    is_applied: bool = False
    """Whether the configs that this one stands in were changed by it already. The trainer sets it
    in the config that it keeps and saves, so that nothing is changed a second time."""

    def configure_trainer(self, trainer_config: Any) -> Any:
        """Returns the ``TrainerConfig`` to train with; called before anything is built.

        Args:
            trainer_config: As it was given, or as the plug-ins before this one left it. It cannot
                be changed: use ``dataclasses.replace``.
        """
        return trainer_config

    def configure_model(self, model_config: Any) -> Any:
        """Returns the ``ModelConfig`` to build the model from, likewise."""
        return model_config

    def problems(self) -> list[str]:
        """Returns what a callback's config may have wrong, and a plug-in of one process alone."""
        found = super().problems()
        if self.main_process_only:
            found.append(
                "main_process_only: found True, expected False: every process has batches."
            )
        return found


class Plugin(Callback):
    """A callback that may change batches too; ``trainer.plugins`` has those of a trainer by name.

    As any callback it has all hooks, keeps a state of its own in checkpoints with ``state_dict``
    and ``load_state_dict``, and ends the run with ``self.trainer.request_stop(detail="...")``.
    """

    def process_batch(self, batch: BatchLike, phase: Phase) -> BatchLike:
        """Returns the batch to use instead of one that a loader has given.

        Called once for each batch that is used, in the order of the loader, often in a thread and
        ahead of the step; not for batches that a resumed run skips. So what it returns may depend
        on the batch and the phase alone. The batch of shapes that a trainer is built with is one
        that was processed.

        Args:
            batch: Of the loader, on the host; it may be the loader's own memory, so that it is not
                to be changed in place.
            phase: What it is for.
        """
        return batch
