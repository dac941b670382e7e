"""What else should be measured at a validation? Another loss, or another dataset."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from xtrainer.callbacks.base import Callback, CallbackConfig
from xtrainer.errors import LoaderError
from xtrainer.types import ApplyFn, BatchLike, HostMetrics, LossOutput, PRNGKey, PyTree


@dataclass(frozen=True, kw_only=True)
class ExtendedEvaluationConfig(CallbackConfig):
    """Base of the configs of further evaluations; ``create`` is defined by the subclass."""

    prefix: str = "extended"
    """Beginning of the metrics' names."""


class ExtendedEvaluation(Callback):
    """Adds the metrics of another loss, or of other datasets, to those of each due validation.

    Override :meth:`loss_function`, and :meth:`get_loaders` where the data are not the dataset that
    ``TrainerModule.set_dataset`` shares. What is added is logged, returned and can be monitored by
    callbacks further down the list.
    """

    config: ExtendedEvaluationConfig

    def loss_function(
        self, params: PyTree, apply_fn: ApplyFn, batch: BatchLike, rng: PRNGKey, train: bool = False
    ) -> LossOutput:
        """Returns what ``TrainerModule.loss_function`` would, for this evaluation.

        Raises:
            TypeError: If the subclass does not define it.
        """
        raise TypeError(f"{type(self).__name__} must define loss_function.")

    def get_loaders(self) -> Mapping[str, Iterable[BatchLike]]:
        """Returns the datasets by name; the shared dataset under an empty name by default.

        Raises:
            LoaderError: If there is no shared dataset.
        """
        if self.dataset is None:
            raise LoaderError(
                f"{type(self).__name__} has no data: found no shared dataset. Call "
                "trainer.set_dataset(loader), or override get_loaders()."
            )
        return self.dataset if isinstance(self.dataset, Mapping) else {"": self.dataset}

    def on_validation_epoch_end(
        self, eval_metrics: HostMetrics, epoch_idx: int, step_idx: int
    ) -> None:
        """Evaluates and adds ``PREFIX_NAME_METRIC``."""
        for name, loader in self.get_loaders().items():
            title = "_".join(part for part in (self.config.prefix, name) if part)
            found = self.trainer.evaluate_with(self.loss_function, loader, title)
            eval_metrics.update({f"{title}_{key}": value for key, value in found.items()})
