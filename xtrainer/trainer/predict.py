"""What does a trainer predict of every example of a loader? One tree of rows, or batch by batch."""

import contextlib
from collections.abc import Generator, Iterable

import jax
import numpy as np

from xtrainer.data import DataModule, Phase
from xtrainer.errors import PredictionError
from xtrainer.loop import Ledger, predict_loader
from xtrainer.trainer import compiled
from xtrainer.trainer.data_modules import phase_of
from xtrainer.trainer.view import TrainerView
from xtrainer.types import BatchLike, PredictFunction, PyTree


def predictions(
    trainer: TrainerView, loader: Iterable[BatchLike] | DataModule, function: PredictFunction
) -> Generator[PyTree, None, None]:
    """Returns a generator of the outputs for each batch, see ``TrainerModule.predict``.

    Args:
        trainer: Its ``evaluated_state`` is used.
        loader: Its position is of its own, apart from that of a training loader. A data module is
            set up when the first batch is asked for, and taken down after the last one.
        function: What to predict; compiled once for each shape of batch.

    Raises:
        LoaderError: If the loader cannot be iterated.
    """
    if isinstance(loader, DataModule):
        return _of_module(trainer, loader, function)
    known = trainer.compiled_predictions
    if function not in known:
        parts = (trainer.step_settings(), trainer.batch_layout, trainer.trainer_config)
        known[function] = compiled.predict_parts(
            function, trainer.model.apply, *parts, trainer.state
        )
    source = trainer.sources.of(loader, "predict")
    return _timed(trainer.ledger, predict_loader(trainer, source, *known[function]))


def _of_module(
    trainer: TrainerView, module: DataModule, function: PredictFunction
) -> Generator[PyTree, None, None]:
    with phase_of(trainer, module, Phase.PREDICT) as loaders:
        yield from predictions(trainer, loaders["predict_loader"], function)


def collected(batches: Iterable[PyTree]) -> PyTree:
    """Returns the rows of all batches in one tree, in order.

    Raises:
        PredictionError: If batches have other outputs than the first, so that there is no one array
            of them.

    Example:
        >>> collected([{"x": np.zeros((2, 3))}, {"x": np.ones((1, 3))}])["x"].shape
        (3, 3)
    """
    parts = list(batches)
    first = _row_spec(parts[0])
    for number, part in enumerate(parts, start=1):
        if (found := _row_spec(part)) != first:
            raise PredictionError(
                f"The outputs for batch {number} have rows of {found}, and those for batch 1 of "
                f"{first}, expected one shape and one dtype. Return outputs of one shape, or use "
                "predict(collect=False), which gives batch by batch."
            )
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def _row_spec(part: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape[1:])}", part)


def _timed(ledger: Ledger, batches: Generator[PyTree, None, None]) -> Generator[PyTree, None, None]:
    """Gives the batches; the time that is spent on them counts as validation."""
    with contextlib.closing(batches):
        while True:
            with ledger.spent("validation"):
                try:
                    batch = next(batches)
                except StopIteration:
                    return
            yield batch
