"""How good is the model whose parameters are an average? Evaluations see it, training does not."""

from dataclasses import dataclass
from typing import Any

from xtrainer.callbacks.base import Callback, CallbackConfig
from xtrainer.callbacks.view import CallbackTrainer
from xtrainer.errors import ConfigError
from xtrainer.optim import averaged_params, has_average
from xtrainer.state import TrainState


@dataclass(frozen=True, kw_only=True)
class EMAConfig(CallbackConfig):
    """Evaluates with the exponential moving average of the parameters.

    ``OptimizerConfig(ema_decay=0.999)`` makes the step keep the average. With this callback every
    validation, test, extended evaluation and ``eval_model`` uses it in place of the parameters; so
    do the metrics that choose the best checkpoint, and the test of that. ``trainer.state`` holds
    the parameters as they are trained all the while; ``trainer.evaluated_state().params`` is the
    average. Collections that the model updates itself, such as batch statistics, are those of
    training.
    """

    def create(self, trainer: CallbackTrainer, data_module: Any = None) -> "EMA":
        """Returns the callback."""
        return EMA(self, trainer, data_module)

    def problems(self) -> list[str]:
        """Returns settings under which processes would evaluate different parameters."""
        found = super().problems()
        if self.main_process_only:
            found.append(
                "main_process_only: found True, expected False: all processes evaluate together, "
                "with the same parameters."
            )
        return found


class EMA(Callback):
    """See :class:`EMAConfig`. Nothing is put back: the state of training is never replaced."""

    config: EMAConfig

    def on_training_start(self) -> None:
        """Makes sure that there is an average.

        Raises:
            ConfigError: If the optimizer keeps none.
        """
        if not has_average(self.trainer.state.opt_state):
            raise ConfigError(
                "EMAConfig: found an optimizer that keeps no average of the parameters, expected "
                "one. Set OptimizerConfig(ema_decay=0.999), or wrap a ready transformation with "
                "xtrainer.optim.with_average."
            )

    def evaluated_state(self, state: TrainState) -> TrainState:
        """Returns the state with the average in place of the parameters."""
        return state.replace(params=averaged_params(state.opt_state, state.params))
