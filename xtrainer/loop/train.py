"""In what order does a training run happen? The loop, as a recipe."""

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax

from xtrainer.data import LoaderPosition, LoaderSource
from xtrainer.launch import compilation_cache
from xtrainer.launch.interrupts import NOTICE, BrokenOff, preemption_noticed
from xtrainer.loop.always import always, noted
from xtrainer.loop.evaluate import Sources, transfer_guard
from xtrainer.loop.feed import Feed, Item
from xtrainer.loop.in_flight import InFlight, Moment
from xtrainer.loop.plan import Plan
from xtrainer.loop.rows import Pending, Results, Rows, free_transfers
from xtrainer.loop.setback import Setback
from xtrainer.loop.stop import StopReason
from xtrainer.loop.together import Together
from xtrainer.loop.validate import validate
from xtrainer.loop.view import LoopTrainer
from xtrainer.step import Flat, PlacedBatch, StepReport

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaders:
    """The loaders of a run.

    Attributes:
        train: Training batches.
        val: Validation sets by prefix, empty for none.
    """

    train: LoaderSource
    val: Sources = field(default_factory=dict)


def run_training(trainer: LoopTrainer, loaders: Loaders, plan: Plan) -> Results:
    """Trains until the plan is fulfilled or a stop is requested.

    Args:
        trainer: Holds the state, which is replaced step by step.
        loaders: Where batches come from.
        plan: When to validate, log and end.

    Returns:
        ``val_epoch_N`` and ``val_step_N`` with the metrics of each validation; ``online`` with the
        means over a pass that counts as no epoch.

    Raises:
        LoaderError: If the training loader gives no batch where one is needed.
    """
    run = _Run(trainer, loaders, plan)
    try:
        run.begin()
        while trainer.stop_reason is None:
            run.epoch()
            if plan.done(trainer.progress):
                trainer.end_run(*run.together.finish(trainer.stop_wanted))
        if plan.is_online:
            means = run.windows.end_epoch()
            run.rows.results["online"] = trainer.get_metric_postprocess_fn()(means)
        run.rows.close(run.in_flight.newest)
    except BaseException as error:
        run.give_up(error)
        raise
    return run.rows.results


class _Run:
    """What the loop keeps between steps."""

    def __init__(self, trainer: LoopTrainer, loaders: Loaders, plan: Plan) -> None:
        self.trainer, self.loaders, self.plan = trainer, loaders, plan
        self.executor = trainer.train_executor()
        self.compile_s = self.executor.programs.compile_s
        done = trainer.progress
        self.rows = Rows(trainer, self.executor)
        self.windows = self.rows.windows
        self.validate = functools.partial(validate, trainer, loaders.val, self.rows)
        self.together = Together()
        self.step_hooks = trainer.step_hooks()
        self.agenda = trainer.agenda(plan, loaders.train.length)
        steps = max(self.agenda.sizes, default=1)
        limit = trainer.max_steps_in_flight
        keep = (trainer.nonfinite_limit or 0) + 3 * plan.log_every_n_steps
        counts = (done.skipped, done.examples, steps, done.step)
        self.in_flight = InFlight(limit, *counts, keep)
        self.feed = Feed(trainer, loaders.train, plan, self.together, self.in_flight.peek)
        self.next_event = self.agenda.next_after(done.step)
        self.over = False  # steps that were dispatched were not taken: nothing comes after them
        self.rewind_to: LoaderPosition | None = None

    def begin(self) -> None:
        """Does what was due when the run was ended; ends one that has nothing to do."""
        if not self.loaders.val:
            self.rows.pending = None
        if (pending := self.rows.pending) is not None:
            self.validate(pending.key, pending.epoch)
            if self.rows.pending is None and pending.ends:
                self.feed.epoch_is_full = pending.ends == "full"
                self.end_epoch(pending.epoch, time.perf_counter())
        if self.plan.done(self.trainer.progress):
            self.end_last_epoch()
            reason, detail = self.together.finish(self.trainer.stop_wanted)
            done = reason is StopReason.FINISHED
            self.trainer.end_run(StopReason.NOTHING_TO_DO if done else reason, detail)

    def end_last_epoch(self) -> None:
        """Ends the epoch of a checkpoint that was saved with the last step, before its end."""
        progress = self.trainer.progress
        if progress.step == self.plan.num_train_steps and self.windows.has_steps:
            self.feed.epoch_is_full = self.plan.epoch_is_full(progress) or self.pass_is_over()
            self.end_epoch(progress.epochs_done + 1, time.perf_counter())

    def epoch(self) -> None:
        """Trains one epoch, or the rest of one that was begun."""
        trainer, progress = self.trainer, self.trainer.progress
        epoch, start = progress.epochs_done + 1, time.perf_counter()
        self.feed.epoch_is_full = False
        self.next_event = self.agenda.next_after(progress.step)  # some things are due by epochs
        self.in_flight.start(Moment.of(progress, self.loaders.train.position))
        if not self.plan.is_online:
            trainer.notify("on_training_epoch_start", epoch)
        with transfer_guard(trainer), trainer.ledger.spent("step"):
            try:
                self.steps(epoch)
            except BrokenOff:  # nothing was taken yet that could be lost
                self.rewind_to = self.in_flight.moment(progress.step).position
            settled = self.settle()
        self.account_for_compiling()
        if self.rewind_to is not None or not settled:
            self.rewind()
            return
        full = self.feed.epoch_is_full or self.plan.epoch_is_full(progress) or self.pass_is_over()
        self.feed.epoch_is_full = full
        reason = trainer.stop_reason
        goes_on = reason is None or reason.was_asked_from_outside
        if full or (goes_on and self.plan.done(progress)):
            if (pending := self.rows.pending) is not None:  # of this step; its row comes first
                self.rows.pending = pending._replace(ends="full" if full else "open")
            else:
                self.end_epoch(epoch, start)

    def steps(self, epoch: int) -> None:
        """Takes the steps of an epoch, and what is due between them."""
        trainer = self.trainer
        with contextlib.closing(self.feed.items()) as items:
            if self.agenda.sizes == (1,):
                for item in items:
                    if item is not None:
                        self.step(item, epoch)
                        if trainer.stop_reason is not None:
                            return
                return
            size = lambda left: self.agenda.size(trainer.progress.step, left)  # noqa: E731
            for group in self.feed.groups(items, size):
                if len(group) == 1:
                    self.step(group[0], epoch)
                else:
                    self.dispatch(group, epoch)
                if trainer.stop_reason is not None:
                    return

    def end_epoch(self, epoch: int, start: float) -> None:
        """Closes an epoch; one cut short by the end of the run stays open for a longer run."""
        trainer, progress = self.trainer, self.trainer.progress
        if self.feed.epoch_is_full:
            progress.epochs_done, progress.step_in_epoch = epoch, 0
        if self.plan.is_online:
            return
        if self.loaders.val and self.plan.validates_after_epoch(epoch):
            self.rows.pending = Pending(f"val_epoch_{epoch}", epoch)
        metrics = trainer.get_metric_postprocess_fn()(self.windows.end_epoch())
        metrics["epoch_time_s"] = time.perf_counter() - start
        with always(lambda: self.rows.log_epoch(metrics, "train_epoch", epoch)):
            trainer.notify("on_training_epoch_end", metrics, epoch)
        trainer.notify("on_epoch_logged", "train_epoch", progress.step)
        if self.rows.pending is not None:
            self.validate(f"val_epoch_{epoch}", epoch)

    def pass_is_over(self) -> bool:
        """Says whether the loader is known to be at the end of a pass that ends the epoch."""
        source, plan = self.loaders.train, self.plan
        if not plan.passes_end_epochs or self.trainer.progress.step_in_epoch == 0:
            return False
        at_end = not source.is_one_shot and source.position.batches == source.length
        return self.together.agree("end of a pass", at_end)

    def step(self, item: Item, epoch: int) -> None:
        """Dispatches one step, and does what is due after it."""
        trainer, windows = self.trainer, self.windows
        bits = self.bits(item) if self.together.several else 0
        state = trainer.carried
        if type(state) is not Flat:
            state = self.executor.flatten(state)
        trainer.carried, windows.current, report = self.executor(
            state, item.batch, windows.current, bits
        )
        self.dispatched((item.batch,), (item.position,), epoch, report)

    def dispatch(self, group: Sequence[Item], epoch: int) -> None:
        """Dispatches the steps of a group in one call, and does what is due after them."""
        trainer, windows = self.trainer, self.windows
        batches = [one.batch for one in group]
        bits = [self.bits(one) for one in group] if self.together.several else [0] * len(group)
        state = self.executor.flatten(trainer.carried)
        trainer.carried, windows.current, report = self.executor.many(
            state, batches, windows.current, bits
        )
        self.dispatched(batches, [one.position for one in group], epoch, report)

    def dispatched(
        self,
        batches: Sequence[PlacedBatch],
        positions: Sequence[LoaderPosition],
        epoch: int,
        report: jax.Array,
    ) -> None:
        """Counts steps that were dispatched, and does what is due after them.

        Args:
            batches: Of each of them.
            positions: Of the loader behind each of them.
            epoch: Under way.
            report: Of all of them.
        """
        trainer, progress, steps = self.trainer, self.trainer.progress, len(positions)
        progress.step = self.windows.step = step = progress.step + steps
        progress.step_in_epoch += steps
        if batches[0].examples > progress.batch_rows:
            progress.batch_rows = batches[0].examples
        if trainer.first_step:
            self.first_step_done(report)
        if self.in_flight.push(report, positions, batches):
            self.check(self.in_flight.newest)
            if self.over:
                return
        if self.next_event is not None and step >= self.next_event:
            self.events(step, epoch, report)

    def first_step_done(self, report: jax.Array) -> None:
        """Waits for the first step of a trainer, once, and tells how long it took to get there."""
        trainer = self.trainer
        trainer.first_step = False
        jax.block_until_ready(report)
        self.account_for_compiling()
        trainer.ledger.first_step = spent = trainer.ledger.snapshot()
        parts = ", ".join(f"{name} {s:.2f} s" for name, s in spent.items() if s >= 0.005)
        _LOG.info("First step after %.2f s: %s.", sum(spent.values()), parts)
        _LOG.info("Meanwhile %s.", compilation_cache().summary(newest=4))
        trainer.journal.first_step()

    def account_for_compiling(self) -> None:
        """Counts the time in which the steps have waited for a program as compilation."""
        before, self.compile_s = self.compile_s, self.executor.programs.compile_s
        self.trainer.ledger.move("step", "compile", self.compile_s - before)

    def bits(self, item: Item) -> int:
        """Returns what this process says to the others with a batch."""
        if preemption_noticed():
            self.trainer.interrupts.ask(NOTICE)
        return self.together.bits(self.trainer.stop_wanted is not None, item.last)

    def events(self, step: int, epoch: int, report: jax.Array) -> None:
        """Does what is due after a step: a row, a validation, hooks."""
        self.next_event = self.agenda.next_after(step)
        self.count_read_steps(self.in_flight.newest)
        due = self.plan.validates_after_step(step) or self.plan.checks_now(self.trainer.progress)
        if self.loaders.val and due:
            self.rows.pending = Pending(f"val_step_{step}", epoch)
        if step % self.plan.log_every_n_steps == 0:
            self.on_host(self.windows.cut, epoch, report)
            if self.rows.spiked is not None:
                self.end_for_spike(*self.rows.spiked)
                return
        if self.rows.pending is not None and self.settle():
            self.validate(f"val_step_{step}", epoch)
        for hook in self.step_hooks:
            if hook.next_step(step - 1) == step:
                if hook.settled and not self.settle():
                    return
                call = functools.partial(hook.call, self.rows.newest, epoch, step)
                with free_transfers(self.trainer), self.trainer.ledger.spent(*hook.account):
                    # Where the state is settled all processes may be waiting for each other.
                    call() if hook.settled else self.on_host(call)

    def count_read_steps(self, report: StepReport) -> None:
        """Brings the counts of progress up to the newest step that was read."""
        self.trainer.progress.skipped = report.skipped
        self.trainer.progress.examples = self.in_flight.examples

    def on_host(self, call: Callable[..., None], *args: Any) -> None:
        """Calls what concerns this process alone; of its error the others are told."""
        try:
            call(*args)
        except Exception as error:
            self.together.fail(error)

    def check(self, report: StepReport) -> None:
        """Ends the run where steps are taken no more: by the guard, or as processes have said."""
        trainer, limit = self.trainer, self.trainer.nonfinite_limit
        self.count_read_steps(report)
        for refused in self.in_flight.take_refused():
            trainer.black_box.refused(*refused)
            trainer.journal.refused(refused[0])
        halted = limit is not None and report.consecutive >= limit
        if self.over or not (halted or report.ended):
            return
        self.over, self.rows.pending = True, None
        newest = self.in_flight.drain()
        progress, moment = trainer.progress, self.in_flight.moment(newest.step)
        progress.step, progress.epochs_done = moment.step, moment.epochs_done
        progress.step_in_epoch, progress.examples = moment.step_in_epoch, self.in_flight.examples
        self.rewind_to = moment.position
        self.windows.rewind(moment.step)
        if limit is None or not halted:
            wish = trainer.stop_wanted
            try:
                trainer.end_run(*self.together.conclude(newest, wish, moment.position))
            except Exception:
                trainer.may_save_failed = self.together.may_save
                raise
            return
        first, last = report.first, report.first + limit - 1
        steps = f"Step {last} was" if limit == 1 else f"Steps {first} to {last} were"
        text = f"{steps} not finite (NaN or Inf in loss, gradients or updates)."
        trainer.setback = Setback.of(first, last, self.in_flight.positions(first, last), text)
        trainer.stop_reason = None  # what was asked for meanwhile is outranked
        trainer.end_run(
            StopReason.NONFINITE,
            f"{text} The state is as the last finite step left it. Look at the batch of that step, "
            "or lower the learning rate.",
        )

    def end_for_spike(self, first: int, last: int, text: str) -> None:
        """Ends the run since the loss of a row is a spike; all processes see the same."""
        if self.settle():
            positions = self.in_flight.positions(first, last)
            self.trainer.setback = Setback.of(first, last, positions, text)
            self.trainer.stop_reason = None
            self.trainer.end_run(StopReason.UNSTABLE, text)

    def settle(self) -> bool:
        """Waits for every dispatched step; says whether they stand, refused ones or not."""
        self.check(self.in_flight.drain())
        return not self.over

    def rewind(self) -> None:
        """Puts the loader behind the batch of the last step that stands; not while it is read."""
        position, self.rewind_to = self.rewind_to, None
        if position is not None and not self.loaders.train.is_one_shot:
            self.loaders.train.restore(position)

    def give_up(self, error: BaseException) -> None:
        """After an error: progress becomes that of the state, and the rows so far are given out."""
        close = lambda: self.rows.close(self.in_flight.newest)  # noqa: E731
        for action in (self.settle, self.rewind, close):
            with noted(error):
                action()
