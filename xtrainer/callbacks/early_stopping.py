"""Is it worth going on? Ends a run whose monitored metric has stopped getting better."""

import math
from dataclasses import dataclass
from typing import Any

from xtrainer.callbacks.monitor import Monitoring, MonitoringConfig, Standing, judge
from xtrainer.callbacks.view import CallbackTrainer

__all__ = ["EarlyStopping", "EarlyStoppingConfig", "Standing", "judge", "reason_to_stop"]


@dataclass(frozen=True, kw_only=True)
class EarlyStoppingConfig(MonitoringConfig):
    """Ends the run where a metric has not improved for some time, or has gone far enough."""

    patience: int = 3
    """Evaluations in a row without an improvement that end the run (training epochs, for their
    metrics); -1: any number."""
    patience_steps: int = -1
    """Steps since the best value, or since training began where there is none, after which an
    evaluation without an improvement ends the run; -1: any number."""
    stopping_threshold: float | None = None
    """A value as good as this ends the run at once."""
    divergence_threshold: float | None = None
    """A value worse than this ends the run at once."""
    check_finite: bool = True
    """A NaN or an infinity ends the run at once. Otherwise it is a value without an improvement; it
    is never the best."""

    def create(self, trainer: CallbackTrainer, data_module: Any = None) -> "EarlyStopping":
        """Returns the callback."""
        return EarlyStopping(self, trainer, data_module)

    def problems(self) -> list[str]:
        """Returns settings that cannot be."""
        found = super().problems()
        for name in ("patience", "patience_steps"):
            if (value := getattr(self, name)) < 1 and value != -1:
                found.append(f"{name}: found {value}, expected >= 1, or -1 for any number.")
        for name in ("stopping_threshold", "divergence_threshold"):
            if (value := getattr(self, name)) is not None and not math.isfinite(value):
                found.append(f"{name}: found {value}, expected a finite number, or None.")
        return found


def reason_to_stop(config: EarlyStoppingConfig, now: Standing) -> str | None:
    """Returns why a run should end whose metric stands so, as a sentence; None: it should not.

    Example:
        >>> reason_to_stop(EarlyStoppingConfig(stopping_threshold=0.5), Standing(0.4, 9, 0, 0.4, 9))
        "'loss' is 0.4 at step 9, which is as good as was asked for (0.5)."
    """
    value = now.value
    if value is None:
        return None
    sign = 1 if config.direction == "min" else -1
    name, at = repr(config.monitor), f"at step {now.step}"
    if config.check_finite and not math.isfinite(value):
        return f"{name} is not finite {at}: {value}."
    limit = config.stopping_threshold
    if limit is not None and math.isfinite(value) and sign * value <= sign * limit:
        return f"{name} is {value:.6g} {at}, which is as good as was asked for ({limit:g})."
    limit = config.divergence_threshold
    if limit is not None and sign * value > sign * limit:
        return f"{name} is {value:.6g} {at}, which is worse than it may be ({limit:g})."
    if now.waited == 0:
        return None
    steps, waited = now.step - now.best_step, None
    if 0 < config.patience <= now.waited:
        waited = f"{now.waited} evaluations"
    elif 0 < config.patience_steps <= steps:
        waited = f"{steps} steps"
    if waited is None:
        return None
    best = "it was never finite" if now.best is None else (
        f"{now.best:.6g} at step {now.best_step} was its best"
    )  # fmt: skip
    return f"{name} has not improved for {waited}: {best}, {at} it is {value:.6g}."


class EarlyStopping(Monitoring):
    """See :class:`EarlyStoppingConfig`.

    All processes stop at the same step. How the metric stands is part of every checkpoint: a run
    that goes on from one stops where it would have stopped anyway, and one that had been stopped
    takes no step more unless its config has changed.
    """

    config: EarlyStoppingConfig

    def on_training_start(self) -> None:
        """Takes the step at which training begins; stops where that was due already.

        Raises:
            ConfigError: If a validation is monitored and there is none.
        """
        super().on_training_start()
        if self.standing is not None:
            self._judged(self.standing)

    def _judged(self, standing: Standing) -> None:
        reason = reason_to_stop(self.config, standing)
        if reason is not None:
            self.trainer.request_stop(detail=f"EarlyStopping: {reason}")
