"""When is the learning rate too large? When a metric gets no better, it is made smaller."""

import logging
from dataclasses import dataclass
from typing import Any, NamedTuple

from xtrainer.callbacks.monitor import Monitoring, MonitoringConfig, Standing
from xtrainer.callbacks.view import CallbackTrainer
from xtrainer.launch import is_main_process
from xtrainer.types import JSON

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ReduceLROnPlateauConfig(MonitoringConfig):
    """Multiplies the learning rate by a factor each time a metric has not improved for some time.

    The schedule of the optimizer goes on; the factor comes on top of it, from the next step on, and
    nothing is compiled anew. The same values give the same factors as
    ``optax.contrib.reduce_on_plateau`` with ``rtol=0`` and ``atol=min_delta``.

    The factor is part of the optimizer's state: a checkpoint of a run without this callback can be
    evaluated and fine-tuned, but no run with it can go on from one, nor the other way round.
    """

    factor: float = 0.1
    """What the learning rate is multiplied by, above 0 and below 1."""
    patience: int = 10
    """Evaluations in a row without an improvement after which it is (training epochs, for their
    metrics)."""
    cooldown: int = 0
    """Evaluations after each time that are not counted, whatever their values."""
    min_lr_factor: float = 0.0
    """The smallest product of all factors."""
    max_reductions: int = -1
    """How often the learning rate is reduced; -1: any number of times."""

    @property
    def changes_learning_rate(self) -> bool:
        """It does."""
        return True

    def create(self, trainer: CallbackTrainer, data_module: Any = None) -> "ReduceLROnPlateau":
        """Returns the callback."""
        return ReduceLROnPlateau(self, trainer, data_module)

    def problems(self) -> list[str]:
        """Returns settings that cannot be."""
        found = super().problems()
        if not 0 < self.factor < 1:
            found.append(f"factor: found {self.factor}, expected 0 < factor < 1.")
        if self.patience < 1:
            found.append(f"patience: found {self.patience}, expected a number >= 1.")
        if self.cooldown < 0:
            found.append(f"cooldown: found {self.cooldown}, expected a number >= 0.")
        if not 0 <= self.min_lr_factor < 1:
            found.append(
                f"min_lr_factor: found {self.min_lr_factor}, expected 0 <= min_lr_factor < 1."
            )
        if self.max_reductions < 1 and self.max_reductions != -1:
            found.append(
                f"max_reductions: found {self.max_reductions}, expected >= 1, or -1 for any number."
            )
        if self.main_process_only:
            found.append(
                "main_process_only: found True, expected False: all processes have one rate."
            )
        return found


class Reductions(NamedTuple):
    """How far a learning rate was reduced.

    Attributes:
        factor: What it is multiplied by now.
        count: How often it was reduced.
        cooldown: Evaluations that are still not to be counted.
    """

    factor: float = 1.0
    count: int = 0
    cooldown: int = 0


def reduce_if_due(
    config: ReduceLROnPlateauConfig, standing: Standing, before: Reductions
) -> tuple[Standing, Reductions]:
    """Returns how a metric stands, and how far the rate is reduced, after one more value.

    Args:
        config: Says when a reduction is due.
        standing: As :func:`xtrainer.callbacks.monitor.judge` gave it for that value.
        before: The reductions so far.

    Example:
        >>> config = ReduceLROnPlateauConfig(patience=2, factor=0.5)
        >>> reduce_if_due(config, Standing(best=1.0, waited=2), Reductions())[1]
        Reductions(factor=0.5, count=1, cooldown=0)
    """
    if before.cooldown > 0:
        return standing._replace(waited=0), before._replace(cooldown=before.cooldown - 1)
    if standing.waited < config.patience:
        return standing, before
    standing = standing._replace(waited=0)
    factor = max(before.factor * config.factor, config.min_lr_factor)
    if factor == before.factor or before.count == config.max_reductions:
        return standing, before
    return standing, Reductions(factor, before.count + 1, config.cooldown)


class ReduceLROnPlateau(Monitoring):
    """See :class:`ReduceLROnPlateauConfig`.

    All processes reduce the rate at the same step. A run that goes on from a checkpoint has the
    rate, the patience and the cooldown that it had there.
    """

    config: ReduceLROnPlateauConfig

    def __init__(
        self,
        config: ReduceLROnPlateauConfig,
        trainer: CallbackTrainer,
        data_module: Any = None,
    ) -> None:
        super().__init__(config, trainer, data_module)
        self.reductions = Reductions()

    @property
    def learning_rate_factor(self) -> float:
        """What the learning rate is multiplied by."""
        return self.reductions.factor

    def on_training_start(self) -> None:
        """Takes the step at which training begins, and sets the rate.

        Raises:
            ConfigError: If a validation is monitored and there is none, or the optimizer's rate
                cannot be changed.
        """
        super().on_training_start()
        self.trainer.update_learning_rate()

    def _judged(self, standing: Standing) -> None:
        before = self.reductions
        self.standing, self.reductions = reduce_if_due(self.config, standing, before)
        if self.reductions.count == before.count:
            return
        self.trainer.update_learning_rate()
        text = (
            f"ReduceLROnPlateau: {self.config.monitor!r} has not improved for "
            f"{standing.waited} evaluations. The learning rate is multiplied by "
            f"{self.reductions.factor:g} after step {standing.step}, before by {before.factor:g}."
        )
        if is_main_process():
            _LOG.info("%s", text)
        self.trainer.logger.log_text("learning_rate", text, standing.step)

    def state_dict(self) -> dict[str, JSON]:
        """Returns how the metric stands, and how far the rate is reduced."""
        return {**self.reductions._asdict(), "standing": super().state_dict()}

    def load_state_dict(self, state: dict[str, JSON]) -> None:
        """Takes back how the metric stood, and how far the rate was reduced."""
        super().load_state_dict(state["standing"])
        self.reductions = Reductions(
            float(state["factor"]), int(state["count"]), int(state["cooldown"])
        )
