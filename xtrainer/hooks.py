"""What can be hooked into? The same methods on the trainer and on every callback, all no-ops."""

from xtrainer.types import HostMetrics


class Hooks:
    """The moments of a run. Epochs and steps count from 1; metrics are Python floats on the host.

    A metrics dictionary handed to a hook may be extended: what is added is logged as well.
    """

    def on_training_start(self) -> None:
        """Called before the first step of ``train_model``."""

    def on_training_end(self) -> None:
        """Called after the last step, also when training was stopped early, not after an error."""

    def on_training_epoch_start(self, epoch_idx: int) -> None:
        """Called before the first step of an epoch."""

    def on_training_epoch_end(self, train_metrics: HostMetrics, epoch_idx: int) -> None:
        """Called after the last step of an epoch with the metrics of the whole epoch."""

    def on_training_step(self, step_metrics: HostMetrics, epoch_idx: int, step_idx: int) -> None:
        """Called after a step was dispatched; ``step_metrics`` is the newest logged row."""

    def on_training_log(self, train_metrics: HostMetrics, step_idx: int) -> None:
        """Called when the metrics of the steps up to ``step_idx`` are about to be logged."""

    def on_validation_epoch_start(self, epoch_idx: int, step_idx: int) -> None:
        """Called before a validation."""

    def on_validation_epoch_end(
        self, eval_metrics: HostMetrics, epoch_idx: int, step_idx: int
    ) -> None:
        """Called after a validation with its metrics."""

    def on_epoch_logged(self, mode: str, step_idx: int) -> None:
        """Called when the row of an epoch or a validation was logged: what a save is to hold is
        there now.

        Args:
            mode: ``"train_epoch"`` or ``"val"``.
            step_idx: The step.
        """

    def on_test_epoch_start(self, epoch_idx: int) -> None:
        """Called before a test."""

    def on_test_epoch_end(self, test_metrics: HostMetrics, epoch_idx: int) -> None:
        """Called after a test with its metrics."""

    def on_rollback(self, step_idx: int) -> None:
        """Called after a run has gone back to the checkpoint of a step, see
        ``TrainerConfig.nonfinite_policy``; state, progress and loaders are those of that step."""

    def on_checkpoint(self, step_idx: int) -> None:
        """Called on all processes when the save of a step was begun, by each ``ModelCheckpoint``;
        it may still be being written, and a step saved already is not saved again."""

    def on_best_checkpoint(self, step_idx: int) -> None:
        """Called when a step that is saved is the best so far by the metric that its
        ``ModelCheckpoint`` monitors; after ``on_checkpoint`` where it was saved just now."""

    def on_exception(self, error: BaseException) -> None:
        """Called once when training ends by an error, before anything is closed."""

    def finalize(self, status: str) -> None:
        """Called last, whatever happened: ``"completed"``, ``"stopped"`` or ``"failed"``."""
