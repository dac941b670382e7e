"""In what order does a training run happen? The loop, as a recipe."""

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import jax

from xtrainer.data import LoaderPosition, LoaderSource, Prefetcher
from xtrainer.errors import LoaderError
from xtrainer.loop.evaluate import Sources, run_evaluation, transfer_guard
from xtrainer.loop.in_flight import InFlight, Moment
from xtrainer.loop.plan import Plan
from xtrainer.loop.stop import StopReason
from xtrainer.loop.together import Together
from xtrainer.loop.view import LoopTrainer
from xtrainer.loop.windows import MetricWindows
from xtrainer.state import Progress
from xtrainer.step import PlacedBatch, StepReport
from xtrainer.types import HostMetrics

_LOG = logging.getLogger(__name__)

Results = dict[str, HostMetrics]


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
        ``val_epoch_N`` and ``val_step_N`` with the metrics of each validation.

    Raises:
        LoaderError: If the training loader gives no batch where one is needed.
    """
    run = _Run(trainer, loaders, plan)
    if plan.done(trainer.progress):
        trainer.end_run(StopReason.NOTHING_TO_DO)
    try:
        while trainer.stop_reason is None:
            run.epoch()
            if plan.done(trainer.progress):
                trainer.end_run(*run.together.finish(trainer.stop_wanted))
        run.windows.close(run.in_flight.newest, trainer.progress.epoch)
    except BaseException as error:
        run.give_up(error)
        raise
    return run.results


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


class _Run:
    """What the loop keeps between steps."""

    def __init__(self, trainer: LoopTrainer, loaders: Loaders, plan: Plan) -> None:
        self.trainer, self.loaders, self.plan = trainer, loaders, plan
        self.results: Results = {}
        self.newest_row: HostMetrics = {}
        self.executor = trainer.train_executor()
        self.windows = MetricWindows(self.executor.new_window, plan.log_every_n_steps, self.log_row)
        done = trainer.progress
        self.in_flight = InFlight(trainer.max_steps_in_flight, done.skipped, done.examples)
        self.together = Together()
        self.step_hooks = trainer.step_hooks()
        self.validated: tuple[int, HostMetrics] | None = None
        self.epoch_is_full = False
        self.over = False  # steps that were dispatched were not taken: nothing comes after them
        self.rewind_to: LoaderPosition | None = None

    def epoch(self) -> None:
        """Trains one epoch, or the rest of one that was begun."""
        trainer, progress = self.trainer, self.trainer.progress
        epoch, start = progress.epochs_done + 1, time.perf_counter()
        self.epoch_is_full = False
        self.in_flight.start(Moment.of(progress, self.loaders.train.position))
        trainer.notify("on_training_epoch_start", epoch)
        with transfer_guard(trainer), contextlib.closing(self.batches()) as batches:
            for batch, position, last in batches:
                self.step(batch, position, epoch, last)
                if trainer.stop_reason is not None:
                    break
        if not self.settle():
            self.rewind()
            return
        full = self.epoch_is_full or self.plan.epoch_is_full(progress) or self.pass_is_over()
        self.epoch_is_full = full
        if full or (trainer.stop_reason is None and self.plan.done(progress)):
            self.end_epoch(epoch, start)

    def end_epoch(self, epoch: int, start: float) -> None:
        """Closes an epoch; one cut short by the end of the run stays open for a longer run."""
        trainer, progress = self.trainer, self.trainer.progress
        if self.epoch_is_full:
            progress.epochs_done, progress.step_in_epoch = epoch, 0
        metrics = trainer.get_metric_postprocess_fn()(self.windows.end_epoch())
        metrics["epoch_time_s"] = time.perf_counter() - start
        trainer.notify("on_training_epoch_end", metrics, epoch)
        trainer.logger.log_metrics(metrics, progress.step, "train_epoch", epoch)
        if self.plan.validates_after_epoch(epoch):
            self.validate(f"val_epoch_{epoch}", epoch)

    def pass_is_over(self) -> bool:
        """Says whether the loader is known to be at the end of a pass that ends the epoch."""
        source, plan = self.loaders.train, self.plan
        if not plan.passes_end_epochs or self.trainer.progress.step_in_epoch == 0:
            return False
        at_end = not source.is_one_shot and source.position.batches == source.length
        return self.together.agree("end of a pass", at_end)

    def batches(self) -> Generator[tuple[PlacedBatch, LoaderPosition, bool], None, None]:
        """Gives the batches of an epoch; never reads more than the epoch can take.

        The third value says whether a batch is known to be the last of a pass. When this process
        has failed, or others go on with their pass, empty batches follow until the run ends.
        """
        others_go_on = False
        try:
            others_go_on = yield from self.own_batches()
        except Exception as error:
            self.together.fail(error)
            others_go_on = True
        while others_go_on:  # until a report says that the run has ended
            empty = self.trainer.prepare_train_batch.empty()
            yield empty, self.loaders.train.position, False

    def own_batches(self) -> Generator[tuple[PlacedBatch, LoaderPosition, bool], None, bool]:
        """Gives this process's batches of an epoch; says whether others are not at their end."""
        source, progress = self.loaders.train, self.trainer.progress
        new_pass = False
        while self.trainer.stop_reason is None:
            taken = progress.step
            limit = self.plan.batches_left(progress)
            last = False
            with contextlib.closing(
                Prefetcher(source, self.trainer.prepare_train_batch, limit=limit)
            ) as ahead:
                for batch, position in ahead:
                    last = self.is_last(ahead, position)
                    yield batch, position, last
            if last and not self.together.all_ended(self.in_flight.peek()):
                return True
            stopped = self.trainer.stop_reason is not None
            if stopped or self.plan.batches_left(progress) == 0:
                self.epoch_is_full = self.plan.epoch_is_full(progress)
                return False
            if self.together.several and self.plan.passes_end_epochs and progress.step > taken:
                if not last:
                    raise ended_early(source)
            if progress.step_in_epoch > 0 and not self.plan.epoch_continues(progress):
                self.epoch_is_full = True  # the loader's pass has ended, and the epoch with it
                return False
            if new_pass and progress.step == taken:
                raise no_batch(source, progress)
            source.new_pass()
            new_pass = True
        return False

    def is_last(self, ahead: Prefetcher, position: LoaderPosition) -> bool:
        """Says whether a batch ends a pass that ends the epoch; asked only where others must know.

        Where the loader's length is not known, this waits until the next batch is read.
        """
        if not self.together.several or not self.plan.passes_end_epochs:
            return False
        length = self.loaders.train.length
        return (length is None or position.batches >= length) and ahead.ended()

    def step(self, batch: PlacedBatch, position: LoaderPosition, epoch: int, last: bool) -> None:
        """Dispatches one step and does what is due after it."""
        trainer, progress = self.trainer, self.trainer.progress
        bits = self.together.bits(trainer.stop_wanted is not None, last)
        trainer.state, self.windows.current, report = self.executor(
            trainer.state, batch, self.windows.current, bits
        )
        progress.step += 1
        progress.step_in_epoch += 1
        progress.batch_rows = max(progress.batch_rows, batch.examples)
        step = progress.step
        trainer.first_step = False
        self.check(self.in_flight.push(report, Moment.of(progress, position)))
        if self.over:
            return
        self.on_host(self.windows.step_done, step, epoch, report)
        if self.plan.validates_after_step(step) and self.settle():
            self.validate(f"val_step_{step}", epoch)
        for hook in self.step_hooks:
            if hook.every <= 1 or step % hook.every == 0:
                if hook.settled and not self.settle():
                    return
                call = functools.partial(hook.call, self.newest_row, epoch, step)
                with _free_transfers(trainer):
                    # Where the state is settled all processes may be waiting for each other.
                    call() if hook.settled else self.on_host(call)

    def on_host(self, call: Callable[..., None], *args: Any) -> None:
        """Calls what concerns this process alone; of its error the others are told."""
        try:
            call(*args)
        except Exception as error:
            self.together.fail(error)

    def check(self, report: StepReport) -> None:
        """Ends the run where steps are taken no more: by the guard, or as processes have said."""
        trainer, limit = self.trainer, self.trainer.nonfinite_limit
        trainer.progress.skipped = report.skipped
        trainer.progress.examples = self.in_flight.examples
        halted = limit is not None and report.consecutive >= limit
        if self.over or not (halted or report.ended):
            return
        self.over = True
        newest = self.in_flight.drain()
        progress, moment = trainer.progress, self.in_flight.moment(newest.step)
        progress.step, progress.epochs_done = moment.step, moment.epochs_done
        progress.step_in_epoch, progress.examples = moment.step_in_epoch, self.in_flight.examples
        self.rewind_to = moment.position
        if limit is None or not halted:
            wish = trainer.stop_wanted
            trainer.end_run(*self.together.conclude(newest, wish, moment.position))
            return
        last = report.first + limit - 1
        steps = f"Step {last} was" if limit == 1 else f"Steps {report.first} to {last} were"
        trainer.stop_reason = None  # what was asked for meanwhile is outranked
        trainer.end_run(
            StopReason.NONFINITE,
            f"{steps} not finite (NaN or Inf in loss, gradients or updates). The state is as the "
            "last finite step left it. Look at the batch of that step, or lower the learning rate.",
        )

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
        try:
            self.settle()
            self.rewind()
            self.windows.close(self.in_flight.newest, self.trainer.progress.epoch)
        except BaseException as other:  # the first error is the one to raise
            error.add_note(f"After it: {type(other).__name__}: {other}")

    def validate(self, key: str, epoch: int) -> None:
        """Evaluates on the validation sets, once for a step."""
        trainer, progress = self.trainer, self.trainer.progress
        if not self.loaders.val:
            return
        step = progress.step
        if self.validated is not None and self.validated[0] == step:
            self.results[key] = self.validated[1]
            return
        self.windows.flush()
        start = time.perf_counter()
        with _free_transfers(trainer):
            trainer.notify("on_validation_epoch_start", epoch, step)
            metrics = run_evaluation(trainer, self.loaders.val, "val", epoch)
            progress.validations += 1
            trainer.notify("on_validation_epoch_end", metrics, epoch, step)
            row = {**metrics, "time_s": time.perf_counter() - start}
            trainer.logger.log_metrics(row, step, "val", epoch)
        self.validated = (step, metrics)
        self.results[key] = metrics

    def log_row(self, metrics: HostMetrics, last: StepReport, epoch: int) -> None:
        """Logs the metrics of the steps up to the one that ``last`` reports."""
        trainer = self.trainer
        metrics = trainer.get_metric_postprocess_fn()(metrics)
        if last.updates < last.step:
            metrics["skipped_steps"] = float(last.step - last.updates)
        with _free_transfers(trainer):
            trainer.notify("on_training_log", metrics, last.step)
            trainer.logger.log_metrics(metrics, last.step, "train", epoch)
        self.newest_row = metrics


def _free_transfers(trainer: LoopTrainer) -> Any:
    # Callbacks and loggers are the user's; what they transfer at their own moments is no stall.
    return jax.transfer_guard("allow") if trainer.guards_transfers else contextlib.nullcontext()
