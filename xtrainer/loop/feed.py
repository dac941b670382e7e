"""Which batches does an epoch take? As many as it can, pass after pass, alone or in groups."""

import contextlib
from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple

from xtrainer.data import LoaderPosition, LoaderSource, Prefetcher
from xtrainer.errors import LoaderError
from xtrainer.loop.plan import Plan
from xtrainer.loop.together import Together
from xtrainer.loop.view import LoopTrainer
from xtrainer.state import Progress
from xtrainer.step import PlacedBatch, StepReport


class Item(NamedTuple):
    """A batch for a step.

    Attributes:
        batch: On the devices, or about to be.
        position: Of the loader behind it.
        last: Whether it is known to be the last of a pass; asked only where others must know.
    """

    batch: PlacedBatch
    position: LoaderPosition
    last: bool


def no_batch(source: LoaderSource, progress: Progress) -> LoaderError:
    """Returns the error of a training loader that gives nothing where a batch is needed."""
    return LoaderError(
        f"The {source.name!r} loader gave no batch after step {progress.step}, in epoch "
        f"{progress.epochs_done + 1}. It is empty, or an iterator that has ended: pass data, a "
        "loader that can be iterated again, or ask for fewer epochs or steps."
    )


def ended_early(source: LoaderSource) -> LoaderError:
    """Returns the error of a loader with fewer batches than its length promises."""
    return LoaderError(
        f"The {source.name!r} loader ended after {source.position.batches} batches, expected "
        f"{source.length} by its len(). With several processes the others rely on it; make "
        "__len__ right, or leave it out."
    )


class Feed:
    """The batches of a run.

    Args:
        trainer: Its progress says what an epoch can still take; it prepares batches.
        source: The training loader.
        plan: What was asked for.
        together: What the processes of the run say.
        peek: Returns the report of the newest step.

    Attributes:
        epoch_is_full: Whether the epoch under way has all its steps.
    """

    def __init__(
        self,
        trainer: LoopTrainer,
        source: LoaderSource,
        plan: Plan,
        together: Together,
        peek: Callable[[], StepReport],
    ) -> None:
        self.epoch_is_full = False
        self._trainer = trainer
        self._source = source
        self._plan = plan
        self._together = together
        self._peek = peek

    def items(self) -> Generator[Item | None, None, None]:
        """Gives the batches of an epoch; never reads more than the epoch can take.

        Before it looks at what was taken, at the end of a pass, it gives None: all that it gave
        must have been taken by then. When this process has failed, or others go on with their
        pass, empty batches follow until the run ends.
        """
        others_go_on = False
        try:
            others_go_on = yield from self._own_items()
        except Exception as error:
            self._together.fail(error)
            others_go_on = True
        while others_go_on:  # until a report says that the run has ended
            empty = self._trainer.prepare_train_batch.empty()
            yield Item(empty, self._source.position, False)

    def groups(
        self, items: Iterator[Item | None], size: Callable[[int | None], int]
    ) -> Iterator[list[Item]]:
        """Gives items in groups for one dispatch; each is taken before the next is asked for.

        A group has as many as ``size`` says, or one: where a pass ends unforeseen, or a batch is of
        another kind, those that are left come one by one.

        Args:
            items: Of :meth:`items`.
            size: Called with the batches that are left, where that is known.
        """
        group: list[Item] = []
        wanted = 0
        try:
            for item in items:
                if group and (item is None or item.batch.kind is not group[0].batch.kind):
                    yield from ([one] for one in group)
                    group = []
                if item is None:
                    continue
                if not group:
                    wanted = size(self._left(item.position))
                group.append(item)
                if len(group) >= wanted:
                    yield group
                    group = []
        except Exception:
            yield from ([one] for one in group)  # they were good, and count as used
            raise
        yield from ([one] for one in group)

    def _left(self, position: LoaderPosition) -> int | None:
        """Returns how many batches there are for the epoch from one on, where that is known."""
        length = self._source.length
        left = [] if length is None else [length - position.batches + 1]
        of_epoch = self._plan.batches_left(self._trainer.progress)
        left += [] if of_epoch is None else [of_epoch]
        return min(left, default=None)

    def _own_items(self) -> Generator[Item | None, None, bool]:
        """Gives this process's batches of an epoch; says whether others are not at their end."""
        trainer, source, plan = self._trainer, self._source, self._plan
        progress, several = trainer.progress, self._together.several
        new_pass = False
        while trainer.stop_reason is None:
            taken = progress.step
            limit = plan.batches_left(progress)
            last = False
            quick = trainer.feeds_host_batches
            ahead = Prefetcher(source, trainer.prepare_train_batch, None, limit, quick)
            # They are batches of the run's own loader.
            skipped = frozenset() if plan.is_online else progress.skipped_batches
            ahead.skips = lambda at, skipped=skipped: (at.pass_index, at.batches) in skipped
            ahead.breaks_off = lambda: trainer.interrupts.asked is not None
            try:
                with contextlib.closing(ahead):
                    for batch, position in ahead:
                        last = several and self._is_last(ahead, position)
                        yield Item(batch, position, last)
                    yield None
            finally:
                trainer.ledger.waited(source.name, "step", ahead.waited_s)
            if several and ahead.was_broken_off:
                return True  # the others hear of it with an empty batch
            if last and not self._together.all_ended(self._peek()):
                return True
            stopped = trainer.stop_reason is not None
            if stopped or plan.batches_left(progress) == 0:
                self.epoch_is_full = plan.epoch_is_full(progress)
                return False
            if several and plan.passes_end_epochs and progress.step > taken and not last:
                raise ended_early(source)
            if progress.step_in_epoch > 0 and not plan.epoch_continues(progress):
                self.epoch_is_full = True  # the loader's pass has ended, and the epoch with it
                return False
            if new_pass and progress.step == taken:
                raise no_batch(source, progress)
            source.new_pass()
            new_pass = True
        return False

    def _is_last(self, ahead: Prefetcher, position: LoaderPosition) -> bool:
        """Says whether a batch ends a pass that ends the epoch.

        Where the loader's length is not known, this waits until the next batch is read.
        """
        if not self._plan.passes_end_epochs:
            return False
        length = self._source.length
        if self._trainer.progress.skipped_batches:  # the last ones may be among them
            return ahead.ended()
        return (length is None or position.batches >= length) and ahead.ended()
