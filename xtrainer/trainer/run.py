"""In what order does ``train_model`` begin, end, and clean up after an error?"""

import functools
import logging
import signal
from collections.abc import Callable, Sequence
from typing import Any

from xtrainer.callbacks import EMA, ModelCheckpoint
from xtrainer.checkpoint import restore_partial
from xtrainer.launch import peers
from xtrainer.launch.exits import note_end_of_run
from xtrainer.launch.interrupts import BrokenOff, Interrupts, asked_to_end, describe
from xtrainer.loggers.base import host_floats
from xtrainer.loop import (
    Loaders,
    Plan,
    StopReason,
    agree_on_end,
    run_training,
)
from xtrainer.metrics import History
from xtrainer.trainer.clean_end import clean_end
from xtrainer.trainer.deterministic import seed_generators
from xtrainer.trainer.memory import explain_memory
from xtrainer.trainer.resume import load_usable
from xtrainer.trainer.rollback import roll_back, tell_of_rollback
from xtrainer.trainer.saving import MODEL_PARTS, checkpoint_callback
from xtrainer.trainer.shared import choose_step
from xtrainer.trainer.start import check_and_compile, rewind_logs
from xtrainer.trainer.view import TrainerView
from xtrainer.trainer.watched import watched
from xtrainer.types import HostMetrics

_LOG = logging.getLogger(__name__)
_HARMED = (StopReason.NONFINITE, StopReason.UNSTABLE)


def train(
    trainer: TrainerView, plan: Plan, loaders: Loaders, test_loader: Any
) -> dict[str, HostMetrics]:
    """Runs a plan; whatever happens, everything is closed and the first error is raised.

    Raises:
        Exception: What the loader, a callback, a logger or the step raised.
    """
    trainer.stop_reason, trainer.stop_detail, trainer.stop_wanted = None, "", None
    trainer.may_save_failed, trainer.results_so_far = False, {}
    config = trainer.trainer_config
    if config.deterministic:
        seed_generators(config.seed, trainer.progress.step)
    try:
        with (
            trainer.ledger.spent("idle"),
            watched(trainer),
            Interrupts(
                functools.partial(_was_asked, trainer), enabled=config.handle_signals
            ) as interrupts,
        ):
            trainer.interrupts = interrupts
            if (earlier := asked_to_end()) is not None:
                interrupts.ask(earlier)
            results = _train(trainer, plan, loaders, test_loader)
    except BaseException as error:
        trainer.journal.stop(error)
        raise
    else:
        trainer.journal.stop(None)
    finally:
        note_end_of_run(_reason(trainer).exit_code)
    if interrupts.asked is not None and not _reason(trainer).was_asked_from_outside:
        interrupts.pass_on()  # it came too late for this run, and is for what follows
    return results


def _wish(number: int) -> tuple[StopReason, str]:
    interrupted = number == signal.SIGINT
    return StopReason.INTERRUPTED if interrupted else StopReason.PREEMPTED, describe(number)


def _was_asked(trainer: TrainerView, number: int) -> None:
    """Ends the run after this step, since a signal has come; called by another thread."""
    trainer.request_stop(*_wish(number))
    _LOG.warning(
        "%s Training ends after this step and is saved; a second one ends it at once.",
        describe(number),
    )


def _train(
    trainer: TrainerView, plan: Plan, loaders: Loaders, test_loader: Any
) -> dict[str, HostMetrics]:
    results: dict[str, HostMetrics] = {}
    begun = False
    try:
        with clean_end(trainer):
            plan = plan.with_checks(trainer.trainer_config.checks_per_epoch, loaders.train.length)
            check_and_compile(trainer, plan, loaders, test_loader)
            trainer.is_own_state = begun = True
            run_training(trainer, loaders, plan)
            while not plan.is_online and roll_back(trainer, loaders):
                results |= trainer.results_so_far
                rewind_logs(trainer)
                tell_of_rollback(trainer)
                if (asked := trainer.interrupts.asked) is not None:
                    trainer.request_stop(*_wish(asked))
                run_training(trainer, loaders, plan)
        results |= trainer.results_so_far
        _tell_end(trainer)
        if begun:
            trainer.notify("on_training_end")
        if begun and test_loader is not None and _may_test(_reason(trainer)):
            _test(trainer, test_loader, results)
        trainer.log_training_summary()
        trainer.ledger.warn_of_large_parts()
        if not plan.is_online:
            _restore_best(trainer)
    except BaseException as error:
        peers.announce(error)  # before anything that other processes would have to take part in
        trainer.stop_reason, trainer.stop_detail = StopReason.FAILED, repr(error)
        explain_memory(trainer, error)
        if trainer.is_own_state:  # else nothing has run
            trainer.black_box.died(error)
        summary = [trainer.log_training_summary] if begun else []
        _run_all([*_last_words(trainer, error), *summary], first=error)
        _close(trainer, first=error)
        raise
    _close(trainer, first=None)
    return results


def _last_words(trainer: TrainerView, error: BaseException) -> list[Callable[[], None]]:
    """Returns the ``on_exception`` of all; checkpoints are committed before others do a thing."""
    told = sorted([trainer, *trainer.callbacks], key=lambda c: not isinstance(c, ModelCheckpoint))
    return [lambda c=c: c.on_exception(error) for c in told]


def _may_test(reason: StopReason) -> bool:
    return reason not in _HARMED and not reason.was_asked_from_outside


def _test(trainer: TrainerView, test_loader: Any, results: dict[str, HostMetrics]) -> None:
    """Adds the test; where that is broken off, the run has not ended as it should."""
    try:
        with trainer.ledger.spent("validation"), trainer.interrupts.breaking_off():
            if metrics := _test_best(trainer, test_loader):  # none where it has ended before
                results["test"] = metrics
                progress = trainer.progress
                floats = host_floats(metrics)
                trainer.history.add("test", progress.step, progress.epoch, floats)
    except BrokenOff:
        asked, trainer.stop_reason = trainer.interrupts.asked, None
        trainer.end_run(*agree_on_end(None if asked is None else _wish(asked)))


def _tell_end(trainer: TrainerView) -> None:
    reason = _reason(trainer)
    level = logging.WARNING if reason in _HARMED else logging.INFO  # shown without a logger too
    _LOG.log(level, "%s", f"{reason.value} {trainer.stop_detail}".rstrip())


def _reason(trainer: TrainerView) -> StopReason:
    return trainer.stop_reason or StopReason.FINISHED


def _test_best(trainer: TrainerView, test_loader: Any) -> HostMetrics:
    """Tests the best model where one is tracked; the trainer's own state stays what it is."""
    callback = checkpoint_callback(trainer)
    best = None if callback is None else callback.best_step()
    last = trainer.state
    if callback is None or best is None or best == trainer.progress.step:
        return trainer.test_model(
            test_loader, apply_callbacks=True, epoch_idx=trainer.progress.epoch
        )
    _LOG.info("Testing the best checkpoint, step %d.", best)
    try:
        folder, damaged = choose_step(callback.folder, "best")
        for path, problems in damaged.items():
            _LOG.error("%s is damaged and is not tested: %s", path, "; ".join(problems[:5]))
        # The average that the best model was judged by is in the state of its optimizer.
        averages = any(isinstance(one, EMA) for one in trainer.callbacks)
        tested = (*MODEL_PARTS, "opt_state") if averages else MODEL_PARTS
        parts = restore_partial(folder, tested, last)
        trainer.state = last.replace(**parts)
        return trainer.test_model(
            test_loader, apply_callbacks=True, epoch_idx=trainer.progress.epoch
        )
    finally:
        trainer.state = last


def _restore_best(trainer: TrainerView) -> None:
    """Loads the best checkpoint where that is asked for; the history stays that of the run."""
    callback = checkpoint_callback(trainer)
    if callback is None or not callback.config.restore_best:
        return
    if _reason(trainer).was_asked_from_outside:
        return
    if callback.best_step() in (None, trainer.progress.step):
        return
    history = trainer.history
    trainer.history = History()
    try:
        folder = load_usable(trainer, callback.folder, "best", own=True)
    finally:
        trainer.history = history
    _LOG.info("The state is that of the best checkpoint now, step %s.", folder.name)


def _close(trainer: TrainerView, first: BaseException | None) -> None:
    status = _reason(trainer).status
    actions = [lambda c=c: c.finalize(status) for c in [*trainer.callbacks, trainer]]
    _run_all([*actions, lambda: trainer.logger.finalize(status)], first)


def _run_all(actions: Sequence[Callable[[], None]], first: BaseException | None) -> None:
    """Runs every action; raises the first error, or notes it where there was one before."""
    raised: BaseException | None = None
    for action in actions:
        try:
            action()
        except BaseException as error:
            if first is not None:
                first.add_note(f"While closing: {type(error).__name__}: {error}")
            elif raised is None:
                raised = error
            else:
                raised.add_note(f"Then: {type(error).__name__}: {error}")
    if raised is not None:
        raise raised
