"""How do the processes of a run stay together? What each says with a step, and how a run ends.

Every process dispatches the same steps and reads their reports equally late. So what one of them
says with a step (see ``xtrainer.step.signals``) ends the run of all at that step, without a wait
in between; why it ended is then told on the host.
"""

import traceback
from typing import Any, NoReturn

import jax
import numpy as np

from xtrainer.data import (
    LoaderPosition,
    LoaderSource,
    batch_spec,
    decode_spec,
    encode_spec,
    num_rows,
    peek_ahead,
)
from xtrainer.errors import CheckpointError, LoaderError, PeerError
from xtrainer.launch import gather, gather_results, peers, raise_for_peers
from xtrainer.loop.stop import StopReason
from xtrainer.loop.view import Preparer
from xtrainer.step import FAIL, LAST, STOP, StepReport
from xtrainer.types import JSON, BatchLike

Wish = tuple[StopReason, str] | None
"""Why a process wants to stop; None: it does not."""


class Together:
    """What this process says with its next batch, and what all make of it in the end.

    For a process alone nothing is ever said.
    """

    def __init__(self) -> None:
        self.several = jax.process_count() > 1
        self.error: Exception | None = None
        self.may_save = False  # all have ended at one step, and none because a save has failed
        self.last = False  # this process has said that its pass is over

    def fail(self, error: Exception) -> None:
        """Keeps an error that the others are told with the next batch; raises it if alone.

        Raises:
            Exception: The error, for a process alone.
        """
        if not self.several:
            raise error
        if self.error is None:
            self.error = error
            # They may be waiting elsewhere than in a step; then this ends them.
            peers.announce(error)

    def bits(self, stop: bool, last: bool) -> int:
        """Returns what is said with a batch.

        Args:
            stop: Whether the run shall end before it.
            last: Whether it is the last one of a pass.
        """
        if not self.several:
            return 0
        self.last |= last
        return (STOP if stop else 0) | (FAIL if self.error else 0) | (LAST if last else 0)

    def all_ended(self, report: StepReport) -> bool:
        """Says whether every process was at the end of its pass with a step."""
        return not self.several or bool(report.agreed & LAST)

    def agree(self, name: str, value: bool) -> bool:
        """Says whether something is true on every process."""
        return all(gather(value, name)) if self.several else value

    def conclude(
        self, report: StepReport, stop: Wish, position: LoaderPosition
    ) -> tuple[StopReason, str]:
        """Returns why the run ends, where a process has asked for it.

        Args:
            report: Of the newest step.
            stop: Why this process wants to stop; None: it does not.
            position: Behind the last batch that stands.

        Raises:
            Exception: The error that this process has told the others of.
            PeerError: If another one has failed, or the loaders do not end together.
        """
        text = None
        if self.error is not None:
            text = "".join(traceback.format_exception(self.error))
        own = {
            "stop": _encoded(stop),
            "error": text,
            "saves": not isinstance(self.error, CheckpointError),
            "batches": position.batches,
            "last": self.last,
        }
        said = gather(own, "why the run ends")
        peers.settle()  # all have left the steps: nobody needs to be ended
        self.may_save = all(s["saves"] for s in said)
        if self.error is not None:
            raise self.error
        raise_for_peers({i: s["error"] for i, s in enumerate(said) if s["error"] is not None})
        if not report.ended & STOP:
            _raise_uneven(said, report.step)
        return _wished([s["stop"] for s in said])

    def finish(self, stop: Wish) -> tuple[StopReason, str]:
        """Returns why a run whose work is done ends: a wish with the last step counts as well."""
        if not self.several:
            return StopReason.FINISHED, ""
        return agree_on_end(stop)


def agree_on_end(stop: Wish) -> tuple[StopReason, str]:
    """Returns why a run ends that a process wants to stop; all processes come here."""
    if jax.process_count() == 1 and stop is not None:
        return stop
    return _wished(gather(_encoded(stop), "end of the run"))


def agree_on_first_batch(
    source: LoaderSource, prepare: Preparer, least_rows: int = 0, like: BatchLike = None
) -> None:
    """Makes all processes give parts of one size, taken from the first batches of their loaders.

    Args:
        source: This process's part of the data; it may be empty.
        prepare: Is told the size.
        least_rows: Rows of a full part where they are known: then there need be no batch.
        like: A batch of the shapes to expect where no process has one.

    Raises:
        LoaderError: If no process has a batch.
        PeerError: If the loader of another process has failed.
    """

    def first() -> JSON:
        try:
            batch = peek_ahead(source)
        except StopIteration:
            return None
        return {"rows": num_rows(batch), "spec": encode_spec(batch_spec(batch))}

    said = gather_results(first, f"first batch of the {source.name!r} loader")
    found = [part for part in said if part is not None]
    rows = max([least_rows, *(part["rows"] for part in found)])
    if rows == 0:
        raise LoaderError(
            f"The {source.name!r} loader gave no batch on any of the {len(said)} processes, "
            "expected one on at least one of them. It is empty, or an iterator that has ended."
        )
    if said[jax.process_index()] is not None:
        like = source.peek()
    elif found:
        like = decode_spec(found[0]["spec"])
    prepare.begin(rows, batch_spec(like))


def fetch_said(ticket: jax.Array, several: bool) -> tuple[int, int]:
    """Waits for an evaluation step; returns the bits that one process and that all have sent."""
    if not several:
        ticket.block_until_ready()
        return 0, 0
    said = np.asarray(jax.device_get(ticket))
    return int(said[0]), int(said[1])


def raise_evaluation_failure(error: Exception | None, name: str) -> NoReturn:
    """Ends an evaluation with which a process has said that it failed.

    Raises:
        Exception: The error of this process.
        PeerError: The error of another one.
    """

    def own() -> None:
        if error is not None:
            raise error

    try:
        gather_results(own, f"evaluation of the {name!r} loader")
    finally:
        peers.settle()
    raise PeerError(
        f"The evaluation of {name!r} was ended by a process that gave no error, expected one. Look "
        "at the output of the other processes."
    )


def _encoded(stop: Wish) -> JSON:
    return None if stop is None else [stop[0].name, stop[1]]


def _wished(wishes: list[Any]) -> tuple[StopReason, str]:
    for process, wish in enumerate(wishes):
        if wish is not None:
            return StopReason[wish[0]], f"Process {process} asked for it. {wish[1]}".strip()
    return StopReason.FINISHED, ""


def _raise_uneven(said: list[Any], step: int) -> NoReturn:
    states = ", ".join(
        f"process {i} {'is at the end of its pass' if s['last'] else 'has more'} after "
        f"{s['batches']} batches"
        for i, s in enumerate(said)
    )
    raise PeerError(
        f"The training loaders of the processes do not end together: at step {step} {states}. "
        "Give every process the same number of batches: use a loader with set_shard "
        "(xtrainer.ArrayLoader, xtrainer.data.GrainLoader), drop the rest of a pass, or count "
        "steps with num_train_steps and steps_per_epoch. The state is as that step left it."
    )
