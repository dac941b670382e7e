"""How far is it? A bar over the steps of training."""

import threading
from dataclasses import dataclass
from typing import Any

from xtrainer.callbacks.base import Callback, CallbackConfig
from xtrainer.callbacks.view import CallbackTrainer
from xtrainer.types import HostMetrics

_JOIN_S = 5.0
_SHORTEST_S = 0.02


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
    """See :class:`ProgressBarConfig`; nothing is drawn where there is no terminal.

    A thread draws every so often what the run's progress says by then: a step costs nothing.
    """

    config: ProgressBarConfig
    bar: Any = None
    _thread: threading.Thread | None = None

    def on_training_start(self) -> None:
        """Draws the bar."""
        from tqdm.auto import tqdm  # not with the package: it imports much

        self.bar = tqdm(
            total=self.trainer.total_steps,
            initial=self.trainer.progress.step,
            desc="train",
            unit="step",
            mininterval=0,  # the thread waits between drawings
            disable=None,  # on a terminal only
        )
        if not self.bar.disable:
            self._ended = threading.Event()
            self._thread = threading.Thread(target=self._draw, name="progress-bar", daemon=True)
            self._thread.start()

    def on_training_log(self, train_metrics: HostMetrics, step_idx: int) -> None:
        """Keeps the newest loss for the next drawing."""
        loss = train_metrics.get("loss_mean", train_metrics.get("loss"))
        if loss is not None and self._thread is not None:
            epoch = self.trainer.progress.epoch
            self.bar.set_postfix(loss=f"{loss:.4g}", epoch=epoch, refresh=False)

    def finalize(self, status: str) -> None:
        """Leaves the bar as it stands."""
        if self._thread is not None:
            self._ended.set()
            self._thread.join(_JOIN_S)
            if self._thread.is_alive():  # the terminal takes nothing: so it would be here
                self.bar = None
            self._thread = None
        if self.bar is not None:
            self._move()
            self.bar.close()
            self.bar = None

    def _draw(self) -> None:
        while not self._ended.wait(max(self.config.min_interval_s, _SHORTEST_S)):
            self._move()

    def _move(self) -> None:
        self.bar.update(self.trainer.progress.step - self.bar.n)
