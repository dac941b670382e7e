"""What is checked and compiled before the first step?"""

import contextlib
import dataclasses
import logging
from typing import Any

import jax
import numpy as np

from xtrainer.data import LoaderSource, batch_spec, describe_mismatch, num_rows, peek_ahead
from xtrainer.errors import BatchError, CheckpointError, LoaderError, PeerError, XTrainerError
from xtrainer.launch import gather_results, process_count
from xtrainer.launch.interrupts import BrokenOff
from xtrainer.loop import Agenda, Loaders, Plan, agree_on_first_batch, every, no_batch
from xtrainer.parallel import put_global
from xtrainer.state import GuardState
from xtrainer.step import PlacedBatch, StepReport
from xtrainer.trainer.overview import log_model
from xtrainer.trainer.rate import RateFactors, rate_factor
from xtrainer.trainer.resize import changes_batch_size
from xtrainer.trainer.rollback import prepare_rollbacks
from xtrainer.trainer.saving import config_to_json
from xtrainer.trainer.view import TrainerView
from xtrainer.types import JSON, BatchLike

_LOG = logging.getLogger(__name__)


def check_and_compile(trainer: TrainerView, plan: Plan, loaders: Loaders, test_loader: Any) -> None:
    """Checks what can be checked before a step is compiled, and says what is about to run.

    Then the training step is compiled in threads, while the evaluation is tried.
    """
    said = gather_results(lambda: _check(trainer, plan, loaders), "start of training")
    for process, other in enumerate(said):
        if other != said[0]:
            raise PeerError(
                f"Process {process} would train from {other}, and process 0 from {said[0]}, "
                "expected the same on all. Restore the same checkpoint and ask for the same "
                "number of epochs or steps on every process."
            )
    trainer.has_validation = bool(loaders.val) and plan.validates
    grows = changes_batch_size(trainer.trainer_config)  # passes become shorter: nobody knows when
    trainer.total_steps = plan.total_steps(None if grows else loaders.train.length)
    trainer.validation_sets = tuple(loaders.val)
    _reset_guard(trainer)
    factors = (trainer.trainer_config, trainer.progress, trainer.callbacks)
    trainer.rates = RateFactors(rate_factor(*factors))
    trainer.notify("on_training_start")  # the last that may refuse before anything is compiled
    if not plan.is_online:
        prepare_rollbacks(trainer, loaders)
    if not plan.done(trainer.progress):
        _compile_ahead(trainer, plan, loaders)
    rewind_logs(trainer)
    trainer.logger.log_config(config_to_json(trainer))
    val = loaders.val.get(None, loaders.val or None)
    asked = (plan.num_epochs, plan.num_train_steps, plan.steps_per_epoch)
    if not plan.is_online:
        log_model(trainer)
        trainer.log_training_info(*asked, loaders.train, val, test_loader)
    trainer.journal.start(plan.is_online)
    _let_waits_break_off(trainer)
    if loaders.val and not plan.done(trainer.progress):
        with contextlib.suppress(BrokenOff), trainer.ledger.spent("compile"):
            with trainer.interrupts.breaking_off():
                for source in loaders.val.values():
                    trainer.test_eval_function(source)


def _let_waits_break_off(trainer: TrainerView) -> None:
    """Lets a process alone that is asked to end not wait for a program before it does."""
    if process_count() == 1:
        train, evaluate = trainer.compiled_train_step.programs, trainer.compiled_eval_step.programs
        train.breaks_off = lambda: trainer.interrupts.asked is not None
        evaluate.breaks_off = lambda: trainer.interrupts.breaks_off


def rewind_logs(trainer: TrainerView) -> None:
    """Takes the loggers back to the checkpoint that was restored, before one of them is opened.

    A tool that was told later would have begun a run of its own.
    """
    saved = trainer.restored_rows
    if saved is not None and saved.loggers is not None:
        try:
            trainer.logger.load_state_dict(saved.loggers, trainer.progress.step)
        except XTrainerError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"A logger cannot go on from what the checkpoint holds of it ({error!r}). Use "
                "another step, or resume=FOLDER, which begins new logs."
            ) from error


def make_agenda(trainer: TrainerView, plan: Plan, train_length: int | None) -> Agenda:
    """Returns when something else than a step is due in a run, and the sizes of its dispatches."""
    config = trainer.trainer_config
    due = [every(plan.log_every_n_steps), *(hook.next_step for hook in trainer.step_hooks())]
    if plan.val_every_n_steps:
        due.append(every(plan.val_every_n_steps))
    if plan.val_points:
        due.append(lambda step: plan.next_check(step, trainer.progress))
    steps = 1 if config.debug else config.steps_per_dispatch
    if steps > 1 and process_count() > 1 and plan.passes_end_epochs and train_length is None:
        steps = 1  # the others would not know how many steps this process's pass still has
        _LOG.warning(
            "steps_per_dispatch is 1, not %d: with several processes and epochs that end with a "
            "pass, the training loader must have a length.", config.steps_per_dispatch,
        )  # fmt: skip
    step, length = trainer.progress.step, plan.steps_per_epoch or train_length
    return Agenda(due, steps, step, plan.total_steps(train_length), length)


def _compile_ahead(trainer: TrainerView, plan: Plan, loaders: Loaders) -> None:
    """Begins to compile the training step, in all sizes that the plan will meet.

    For batches like the example batch, with the rows that the loader says it gives. What is
    compiled for an evaluation follows when its first batch is known.
    """
    rows = _rows_ahead(trainer, loaders.train)
    if rows is None:
        return
    spec = jax.ShapeDtypeStruct
    batch = batch_spec(trainer.exmp_batch)
    batch = jax.tree.map(lambda x: spec((rows, *x.shape[1:]), x.dtype), batch)
    sizes = set(make_agenda(trainer, plan, loaders.train.length).sizes)
    if loaders.train.length is None:
        sizes.add(1)  # for what is left when the pass ends
    with trainer.ledger.spent("compile"):
        for steps in sorted(sizes, reverse=True):
            trainer.compiled_train_step.ahead(trainer.state, batch, steps)


def _rows_ahead(trainer: TrainerView, source: LoaderSource) -> int | None:
    """Returns the rows that a full batch will have in the compiled step; None: not known."""
    loader, known = source.loader, getattr(source.loader, "batch_size", None)
    if type(known) is int and known > 0:
        rows = known
    elif process_count() > 1:
        return None
    elif isinstance(loader, list | tuple) and loader:
        rows = num_rows(loader[0])
    else:
        rows = num_rows(trainer.exmp_batch)
    return rows if trainer.batch_layout.divides(rows) else None


def _check(trainer: TrainerView, plan: Plan, loaders: Loaders) -> dict[str, JSON]:
    """Checks the first batches; returns what must be the same on every process."""
    plan.total_steps(loaders.train.length)  # which refuses more than can be counted
    if not plan.done(trainer.progress):
        _check_first_batch(trainer, loaders.train)
        for source in loaders.val.values():
            _check_eval_batch(trainer, source)
    p, sets = trainer.progress, [str(name) for name in loaders.val]
    state = {"step": p.step, "epochs_done": p.epochs_done, "step_in_epoch": p.step_in_epoch}
    return {**state, "plan": dataclasses.asdict(plan), "validation sets": sets}


def first_batch(source: LoaderSource) -> BatchLike:
    """Returns the first batch of a new pass, which stays the first.

    Raises:
        LoaderError: If there is no batch.
    """
    source.new_pass()
    try:
        return peek_ahead(source)
    except StopIteration:
        raise LoaderError(f"The {source.name!r} loader is empty, expected a batch.") from None


def first_eval_batch(trainer: TrainerView, source: LoaderSource) -> PlacedBatch:
    """Returns the first batch of a new pass on the devices; padding where only others have one.

    Raises:
        LoaderError: If no process has a batch.
    """
    prepare = trainer.prepare_eval_batch
    if process_count() == 1:
        return prepare(first_batch(source))
    source.new_pass()
    agree_on_first_batch(source, prepare)
    try:
        return prepare(source.peek())
    except StopIteration:
        return prepare.empty()


def _check_first_batch(trainer: TrainerView, source: LoaderSource) -> None:
    if source.position.batches == 0:
        trainer.progress.batch_rows = 0  # the first batch of a pass is a full one
    prepare, shard = trainer.prepare_train_batch, trainer.sources.shard
    rows = trainer.progress.batch_rows // shard.count
    prepare.begin(rows)
    try:
        if process_count() > 1:
            agree_on_first_batch(source, prepare, rows, trainer.exmp_batch)
        with trainer.ledger.waiting(source.name):
            batch = peek_ahead(source)
        prepare.check_first(batch)
    except StopIteration:
        if source.position.pass_index == source.position.batches == 0:
            raise no_batch(source, trainer.progress) from None
        # Else the pass has ended; the loop starts the next, and says so if that is empty.
    except BatchError as error:
        error.add_note("This is the first batch of the training loader.")
        raise


def _check_eval_batch(trainer: TrainerView, source: LoaderSource) -> None:
    if process_count() > 1:
        source.new_pass()
        agree_on_first_batch(source, trainer.prepare_eval_batch)
        return  # other processes might not try the loss with theirs
    batch = first_batch(source)
    if describe_mismatch(trainer.exmp_batch, batch) is None:
        return  # the loss has been tried with such a batch
    try:
        trainer.init_eval_metrics(batch)
    except Exception as error:
        error.add_note(f"This was tried with the first batch of the {source.name!r} loader.")
        raise


def _reset_guard(trainer: TrainerView) -> None:
    """Lets a state that the guard has halted take steps again.

    The step that halted it was not taken and will come again: it is no skipped one.
    """
    guard, limit = trainer.state.guard, trainer.nonfinite_limit
    step, counts = jax.device_get((trainer.state.step, guard.counts))
    report = StepReport(int(step), *counts[:4].tolist())
    halted = report.halted or (limit is not None and report.consecutive >= limit)
    if halted or report.ended:
        skipped = report.step - report.updates
        row = (0, 0) if halted else (report.consecutive, report.first)
        counts = np.array((skipped, *row, 0, *counts[4:]), np.int32)
        guard = GuardState(put_global(counts, guard.counts.sharding))
        trainer.state = trainer.state.replace(guard=guard)
        trainer.progress.skipped = skipped
