"""How good is the model on a dataset? One pass, exact for any batch size and any remainder."""

import contextlib
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import jax

from xtrainer.data import LoaderSource, Prefetcher
from xtrainer.errors import LoaderError
from xtrainer.loop.view import LoopTrainer
from xtrainer.metrics import DeviceMetrics, HostWindow, finish
from xtrainer.step import EvalExecutor, PlacedBatch
from xtrainer.types import BatchLike, HostMetrics

Sources = Mapping[str | None, LoaderSource]
"""Loaders by the prefix of their metrics; the key None has no prefix."""


def run_evaluation(
    trainer: LoopTrainer, sources: Sources, mode: str, epoch_idx: int
) -> HostMetrics:
    """Returns the metrics of every dataset.

    Args:
        trainer: The trainer.
        sources: One loader per dataset; the metrics of a named one are called ``NAME_METRIC``.
        mode: The set's name, ``val`` or ``test``.
        epoch_idx: Handed to the trainer's evaluation.

    Raises:
        LoaderError: If a dataset is empty.
    """
    metrics: HostMetrics = {}
    for name, source in sources.items():
        title = mode if name is None else f"{mode} {name}"
        # Through the trainer's method, so that a subclass can replace it.
        window = trainer._run_model_eval(source, title, epoch_idx)
        found = finish(HostWindow.fetch(window), missing="nan")
        metrics |= {key if name is None else f"{name}_{key}": v for key, v in found.items()}
    return trainer.get_metric_postprocess_fn()(metrics)


def evaluate_loader(
    trainer: LoopTrainer,
    source: LoaderSource,
    executor: EvalExecutor,
    prepare: Callable[[BatchLike], PlacedBatch],
    title: str = "",
) -> DeviceMetrics:
    """Returns the metrics of one pass over a loader, still on the devices.

    Args:
        trainer: The trainer whose state is evaluated.
        source: The loader; a new pass is begun.
        executor: The compiled step.
        prepare: From a host batch to one on the devices.
        title: For the progress bar and messages.

    Raises:
        LoaderError: If there is no batch.
    """
    window = executor.new_window()
    waiting: deque[jax.Array] = deque()
    batches = 0
    source.new_pass()
    with (
        transfer_guard(trainer),
        contextlib.closing(Prefetcher(source, prepare)) as batches_ahead,
    ):
        bar = trainer.tracker(batches_ahead, desc=title, total=source.length, leave=False)
        for batch, _ in bar:
            window, ticket = executor(trainer.state, batch, window)
            waiting.append(ticket)
            if len(waiting) > trainer.max_steps_in_flight:
                jax.block_until_ready(waiting.popleft())
            batches += 1
    if not batches:
        raise LoaderError(
            f"The {source.name!r} loader gave no batch to evaluate. An evaluation of nothing has "
            "no mean; give it data, or pass None for no evaluation."
        )
    return window


def transfer_guard(trainer: LoopTrainer) -> Any:
    """Returns a context in which an implicit transfer is an error, where the trainer guards."""
    return jax.transfer_guard("disallow") if trainer.guards_transfers else contextlib.nullcontext()
