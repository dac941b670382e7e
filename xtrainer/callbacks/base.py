"""What is a callback? Hooks with a config that says when they are due."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xtrainer.callbacks.view import CallbackTrainer
from xtrainer.config import Config
from xtrainer.errors import ConfigError
from xtrainer.hooks import Hooks
from xtrainer.launch import is_main_process, process_count
from xtrainer.state import TrainState
from xtrainer.types import JSON


@dataclass(frozen=True, kw_only=True)
class CallbackConfig(Config):
    """When a callback is called; the base of every callback's config."""

    every_n_epochs: int = 1
    """Epochs between calls of epoch hooks, and of validation hooks at the end of an epoch."""
    every_n_steps: int = -1
    """Steps between calls of ``on_training_step``, and of validation hooks within an epoch; -1:
    each one."""
    main_process_only: bool = False
    """Whether other processes go without this callback."""

    @property
    def changes_learning_rate(self) -> bool:
        """Whether its callback has a ``learning_rate_factor``; the optimizer is built for one."""
        return False

    @property
    def changes_batch_size(self) -> bool:
        """Whether its callback may change the size of training batches."""
        return False

    def create(self, trainer: CallbackTrainer, data_module: Any = None) -> "Callback":
        """Returns the callback that this config describes.

        Raises:
            TypeError: If the class of the config does not define it.
        """
        raise TypeError(
            f"{type(self).__name__} has no create(trainer, data_module=None). Define it so that it "
            "returns the callback."
        )

    def problems(self) -> list[str]:
        """Returns frequencies that cannot be."""
        found = []
        if self.every_n_epochs < 1:
            found.append(f"every_n_epochs: found {self.every_n_epochs}, expected a number >= 1.")
        if self.every_n_steps < 1 and self.every_n_steps != -1:
            found.append(f"every_n_steps: found {self.every_n_steps}, expected >= 1, or -1.")
        return found


class Callback(Hooks):
    """Base of callbacks: derive, override hooks, write a config whose ``create`` returns it.

    Args:
        config: When the callback is due, and its own settings.
        trainer: The trainer, as a callback may use it.
        data_module: What ``init_callbacks`` was given; usually the user's data.
    """

    needs_settled_state: bool = False
    """Whether ``on_training_step`` waits until the step is known to be finite."""

    def __init__(
        self, config: CallbackConfig, trainer: CallbackTrainer, data_module: Any = None
    ) -> None:
        self.config = config
        self.trainer = trainer
        self.data_module = data_module
        self.dataset: Any = None

    def own_folder(self, log_path: str | None, name: str) -> Path:
        """Returns the folder a callback writes to: its own, or one called ``name`` of the run.

        Raises:
            ConfigError: If there is neither.
        """
        if log_path is not None:
            return Path(log_path).expanduser().resolve()
        if self.trainer.log_path is None:
            raise ConfigError(
                f"{type(self).__name__}: found no folder, neither its own log_path nor the "
                "logger's. Set LoggerConfig(log_path=...), or "
                f"{type(self.config).__name__}(log_path=...)."
            )
        return self.trainer.log_path / name

    @property
    def learning_rate_factor(self) -> float:
        """What the learning rate is multiplied by, besides its schedule; part of the state.

        Override it where the config says ``changes_learning_rate``, let it change in a hook of an
        epoch or a validation only, and call ``trainer.update_learning_rate()`` after it has.
        """
        return 1.0

    def set_dataset(self, dataset: Any) -> None:
        """Receives the dataset that ``TrainerModule.set_dataset`` was given."""
        self.dataset = dataset

    def state_dict(self) -> dict[str, JSON]:
        """Returns what a checkpoint keeps of this callback; JSON."""
        return {}

    def load_state_dict(self, state: dict[str, JSON]) -> None:
        """Takes back what :meth:`state_dict` returned."""

    def evaluated_state(self, state: TrainState) -> TrainState:
        """Returns the state that evaluations are to use; that of training stays what it is."""
        return state

    def step_interval(self) -> int | None:
        """Returns every how many steps ``on_training_step`` does something; None: never."""
        overridden = type(self).on_training_step is not Hooks.on_training_step
        return max(self.config.every_n_steps, 1) if overridden else None

    def next_step(self, step: int) -> int | None:
        """Returns the next step after one at which ``on_training_step`` is called; None: never.

        Steps up to it may be dispatched in one call, see ``TrainerConfig.steps_per_dispatch``.
        """
        interval = self.step_interval()
        return None if interval is None else step - step % interval + interval

    def watches_steps(self) -> bool:
        """Says whether ``on_training_step`` may be called at all in the run that begins."""
        return self.next_step(self.trainer.progress.step) is not None

    @property
    def account(self) -> tuple[str, str]:
        """What the time of this callback is counted for, and its name there."""
        return "callbacks", type(self).__name__

    def is_due(self, hook: str, args: Sequence[Any]) -> bool:
        """Says whether a hook is to be called now."""
        config, progress = self.config, self.trainer.progress
        if hook.startswith("on_validation"):
            epoch, step = args[-2:]
            if progress.step_in_epoch:  # within an epoch
                return config.every_n_steps <= 1 or step % config.every_n_steps == 0
            return epoch % config.every_n_epochs == 0
        if "_epoch_" in hook:
            return args[-1] % config.every_n_epochs == 0
        return True


def build_callbacks(
    configs: Sequence[CallbackConfig], trainer: CallbackTrainer, data_module: Any = None
) -> list[Callback]:
    """Returns the callbacks of this process in the order of their configs.

    Raises:
        ConfigError: If one of the main process alone waits for the steps of all.
    """
    wanted = [c for c in configs if is_main_process() or not c.main_process_only]
    callbacks = [config.create(trainer, data_module) for config in wanted]
    for callback in callbacks if process_count() > 1 else []:
        if callback.needs_settled_state and callback.config.main_process_only:
            raise ConfigError(
                f"{type(callback).__name__}: found main_process_only=True, expected False with "
                f"{process_count()} processes: it waits for steps, which all must do together."
            )
    return callbacks
