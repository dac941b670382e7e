"""How often is something so in a set? Counted on the devices, exact for any batch and mesh."""

from collections.abc import Iterable
from typing import cast

import numpy as np

from xtrainer.loop import evaluate_loader
from xtrainer.metrics import HostWindow, finish
from xtrainer.trainer import compiled
from xtrainer.trainer.view import TrainerView
from xtrainer.types import BatchLike, CountFunction


def count(
    trainer: TrainerView,
    function: CountFunction,
    size: int,
    loader: Iterable[BatchLike],
    title: str,
) -> np.ndarray:
    """Returns int64 ``(size,)``, see ``TrainerModule.count_with``."""
    known, key = trainer.compiled_evaluations, ("count", function, size)
    if key not in known:
        parts = (trainer.step_settings(), trainer.batch_layout, trainer.trainer_config)
        known[key] = compiled.count_parts(
            function, size, trainer.model.apply, *parts, trainer.state
        )
    source = trainer.sources.of(loader, title)
    executor, prepare = known[key]
    with trainer.ledger.spent("validation"):
        window = evaluate_loader(trainer, source, executor, prepare, title)
    found = finish(HostWindow.fetch(window), missing="nan")
    return np.array(cast(list[float], list(found.values()))).astype(np.int64)
