"""How good is the model on a dataset? One pass, exact for any batch size and any remainder."""

import contextlib
from collections import deque
from collections.abc import Generator, Mapping
from typing import Any

import jax

from xtrainer.data import LoaderSource, Prefetcher
from xtrainer.errors import LoaderError
from xtrainer.launch.interrupts import BrokenOff
from xtrainer.loop.together import (
    Together,
    agree_on_first_batch,
    fetch_said,
    raise_evaluation_failure,
)
from xtrainer.loop.view import LoopTrainer, Preparer
from xtrainer.metrics import DeviceMetrics, HostWindow, finish
from xtrainer.step import FAIL, LAST, STOP, EvalExecutor, PlacedBatch, whole
from xtrainer.types import HostMetrics

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
        BrokenOff: If the program is asked to end, where the trainer lets that break off.
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
    prepare: Preparer,
    title: str = "",
) -> DeviceMetrics:
    """Returns the metrics of one pass over a loader, still on the devices.

    The processes of a run may have different numbers of batches, also none.

    Args:
        trainer: The trainer whose ``evaluated_state`` is evaluated.
        source: The loader; a new pass is begun.
        executor: The compiled step.
        prepare: From a host batch to one on the devices.
        title: For the progress bar and messages.

    Raises:
        LoaderError: If there is no batch.
        PeerError: If the loader of another process fails.
    """
    source.new_pass()
    together = Together()
    if together.several:
        agree_on_first_batch(source, prepare)
    window = executor.new_window()
    waiting: deque[jax.Array] = deque()
    batches, limit, compiled = 0, trainer.max_steps_in_flight, executor.programs.compile_s
    several, state = together.several, executor.flatten(trainer.evaluated_state())
    with (
        transfer_guard(trainer),
        contextlib.closing(batches_of_pass(source, prepare, together, trainer)) as feed,
    ):
        bar = trainer.tracker(feed, desc=title, total=source.length, leave=False)
        for batch, last in bar:
            asked = trainer.interrupts.breaks_off
            if asked and not several:
                break
            bits = together.bits(asked, last) if several else 0
            window, ticket = executor(state, batch, window, bits)
            waiting.append(ticket)
            batches += 1
            trainer.ledger.beats += 1
            if len(waiting) > limit:
                # Read equally late everywhere, so that all leave after the same batch.
                leave_if_said(waiting.popleft(), together, source)
            if last and fetch_said(ticket, several)[1] & LAST:
                break
    trainer.ledger.move("validation", "compile", executor.programs.compile_s - compiled)
    if several:
        for ticket in waiting:
            leave_if_said(ticket, together, source)
    elif trainer.interrupts.breaks_off:
        raise BrokenOff
    if not batches:
        raise no_batch_given(source)
    return whole(window)


def no_batch_given(source: LoaderSource) -> LoaderError:
    """Returns the error of a loader that gives nothing to evaluate."""
    return LoaderError(
        f"The {source.name!r} loader gave no batch to evaluate. An evaluation of nothing has no "
        "mean; give it data, or pass None for no evaluation."
    )


def leave_if_said(ticket: jax.Array, together: Together, source: LoaderSource) -> None:
    """Waits for a step; leaves where a process has said with it that it failed or is to end."""
    said = fetch_said(ticket, together.several)[0]
    if said & FAIL:
        raise_evaluation_failure(together.error, source.name)
    if said & STOP:
        raise BrokenOff


def batches_of_pass(
    source: LoaderSource, prepare: Preparer, together: Together, trainer: LoopTrainer
) -> Generator[tuple[PlacedBatch, bool], None, None]:
    """Gives the batches of a pass, each with whether this process has none after it.

    Where other processes may have more, batches of padding follow without end.
    """
    ahead = Prefetcher(source, prepare, None, may_inline=trainer.feeds_host_batches)
    ahead.breaks_off = lambda: trainer.interrupts.breaks_off
    try:
        with contextlib.closing(ahead):
            if not together.several:
                for batch, _ in ahead:
                    yield batch, False
            else:
                for batch, position in ahead:
                    at_end = source.length is None or position.batches >= source.length
                    yield batch, at_end and ahead.ended()
    except Exception as error:
        together.fail(error)
    finally:
        trainer.ledger.waited(source.name, "validation", ahead.waited_s)
    while together.several:
        yield prepare.empty(), together.error is None


def transfer_guard(trainer: LoopTrainer) -> Any:
    """Returns a context in which an implicit transfer is an error, where the trainer guards.

    On a CPU there is none where host batches go straight into the compiled step: nothing is
    transferred there, and a loader may be read in this thread.
    """
    guarded = trainer.guards_transfers and not trainer.feeds_host_batches
    return jax.transfer_guard("disallow") if guarded else contextlib.nullcontext()
