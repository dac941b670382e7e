"""What does the model say of each example? One pass, in order, a few batches ahead of the host."""

import contextlib
from collections import deque
from collections.abc import Generator
from typing import Any

import jax
import numpy as np

from xtrainer.data import LoaderSource
from xtrainer.launch.interrupts import BrokenOff
from xtrainer.loop.evaluate import (
    batches_of_pass,
    leave_if_said,
    no_batch_given,
    transfer_guard,
)
from xtrainer.loop.together import Together, agree_on_first_batch, fetch_said
from xtrainer.loop.view import LoopTrainer, Preparer
from xtrainer.step import LAST, PredictExecutor
from xtrainer.types import PyTree


def predict_loader(
    trainer: LoopTrainer, source: LoaderSource, executor: PredictExecutor, prepare: Preparer
) -> Generator[PyTree, None, None]:
    """Gives the outputs for one batch after the other, on the host and without padding.

    At most ``max_steps_in_flight`` batches are computed ahead of the one that is given out. The
    processes of a run may have different numbers of batches; each gives the rows of all, and all
    must take them to the end.

    Args:
        trainer: The trainer whose ``evaluated_state`` is used, as it is when the first batch is
            asked for.
        source: The loader; a new pass is begun.
        executor: The compiled step.
        prepare: From a host batch to one on the devices.

    Raises:
        LoaderError: If there is no batch.
        PeerError: If the loader of another process fails.
        BrokenOff: If the program is asked to end, where the trainer lets that break off.
    """
    source.new_pass()
    together = Together()
    several, interrupts = together.several, trainer.interrupts
    if several:
        agree_on_first_batch(source, prepare)
    window, state = executor.new_window(), executor.flatten(trainer.evaluated_state())
    waiting: deque[tuple[Any, jax.Array]] = deque()  # results, and what to wait for them by
    found = False
    with contextlib.closing(batches_of_pass(source, prepare, together, trainer)) as feed:
        for batch, last in feed:
            if interrupts.breaks_off and not several:
                break
            bits = together.bits(interrupts.breaks_off, last) if several else 0
            with transfer_guard(trainer):  # not around the yield: it would be the caller's as well
                outputs, mask, window, ticket = executor(state, batch, window, bits)
            _start_to_host((outputs, mask))
            waiting.append(((outputs, mask), ticket))
            found = True
            trainer.ledger.beats += 1
            if len(waiting) > trainer.max_steps_in_flight:
                yield from _given_out(waiting, together, source)
            if last and fetch_said(ticket, several)[1] & LAST:
                break
    if interrupts.breaks_off and not several:
        raise BrokenOff
    while waiting:
        yield from _given_out(waiting, together, source)
    if not found:
        raise no_batch_given(source)


def _start_to_host(tree: PyTree) -> None:
    for leaf in jax.tree.leaves(tree):
        leaf.copy_to_host_async()


def _given_out(
    waiting: deque[tuple[Any, jax.Array]], together: Together, source: LoaderSource
) -> Generator[PyTree, None, None]:
    """Gives the oldest outputs, unless all their rows are padding."""
    results, ticket = waiting.popleft()
    leave_if_said(ticket, together, source)
    outputs, mask = jax.device_get(results)
    if mask.any():
        yield jax.tree.map(lambda leaf: np.asarray(leaf)[mask], outputs)  # a copy
