"""How far is it? A bar over the steps of training."""

from dataclasses import dataclass
from typing import Any

from xtrainer.callbacks.base import Callback, CallbackConfig
from xtrainer.callbacks.view import CallbackTrainer
from xtrainer.types import HostMetrics


@dataclass(frozen=True, kw_only=True)
class ProgressBarConfig(CallbackConfig):
    """Draws a bar of steps with the newest loss; added by ``TrainerConfig.enable_progress_bar``."""

    main_process_only: bool = True
    """Whether other processes go without this callback."""
    min_interval_s: float = 0.5
    """Seconds between two drawings."""

    def create(self, trainer: CallbackTrainer, data_module: Any = None) -> "ProgressBar":
        """Returns the callback."""
        return ProgressBar(self, trainer, data_module)


class ProgressBar(Callback):
    """See :class:`ProgressBarConfig`; nothing is drawn where there is no terminal."""

    config: ProgressBarConfig
    bar: Any = None

    def on_training_start(self) -> None:
        """Draws the bar."""
        from tqdm.auto import tqdm  # not with the package: it imports much

        self.bar = tqdm(
            total=self.trainer.total_steps,
            initial=self.trainer.progress.step,
            desc="train",
            unit="step",
            mininterval=self.config.min_interval_s,
            disable=None,  # on a terminal only
        )

    def on_training_step(self, step_metrics: HostMetrics, epoch_idx: int, step_idx: int) -> None:
        """Moves the bar; tqdm draws on its own timer."""
        self.bar.update(step_idx - self.bar.n)

    def on_training_log(self, train_metrics: HostMetrics, step_idx: int) -> None:
        """Shows the newest loss."""
        loss = train_metrics.get("loss_mean", train_metrics.get("loss"))
        if loss is not None:
            self.bar.set_postfix(
                loss=f"{loss:.4g}", epoch=self.trainer.progress.epoch, refresh=False
            )

    def finalize(self, status: str) -> None:
        """Leaves the bar as it stands."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None
