"""On which sets is a run validated? Those it was given, and on request its training set."""

from collections.abc import Iterable, Sequence
from typing import Any

from xtrainer.data import LoaderSource
from xtrainer.errors import ConfigError
from xtrainer.trainer.sources import Sources
from xtrainer.types import BatchLike, EvaluableLoader

TRAIN = "train"
"""The name of the training set among those of a validation."""


def validation_sets(
    sources: Sources, val_loader: Any, train_loader: Any, with_training_set: bool
) -> dict[str | None, LoaderSource]:
    """Returns the sets of a validation by the prefix of their metrics.

    Args:
        sources: The loaders of the trainer.
        val_loader: As for ``train_model``.
        train_loader: The same; it stays where it is.
        with_training_set: Whether the training set is one of them, called ``train``.

    Raises:
        ConfigError: If the training loader cannot be read besides, or there is such a set already.
    """
    found = sources.of_sets(val_loader, "val")
    if not with_training_set:
        return found
    if TRAIN in found:
        raise ConfigError(
            "evaluate_training_set: found a validation set called 'train', expected another name: "
            "the training set is added under this one. Rename it, or leave "
            "evaluate_training_set=False."
        )
    return {TRAIN: sources.of(_read_besides(train_loader), f"val/{TRAIN}"), **found}


def _read_besides(loader: Any) -> Iterable[BatchLike]:
    """Returns a loader of the same set that moves the place of training in no way."""
    loader = loader.loader if isinstance(loader, LoaderSource) else loader
    if isinstance(loader, EvaluableLoader):
        return loader.for_evaluation()
    if isinstance(loader, Sequence):
        return loader
    raise ConfigError(
        f"evaluate_training_set: found a {type(loader).__name__} as the training loader, expected "
        "one that can be read a second time and still stands where it stood: a list, an "
        "ArrayLoader, a GrainLoader, or one with for_evaluation(). Or pass the set yourself: "
        "val_loader={'train': ..., 'val': ...} with evaluate_training_set=False."
    )
