"""What happens when a run validates, and when that is broken off?"""

import time

from xtrainer.launch.interrupts import BrokenOff
from xtrainer.loop.always import always
from xtrainer.loop.evaluate import Sources, run_evaluation
from xtrainer.loop.rows import Pending, Rows, Validated, free_transfers
from xtrainer.loop.together import agree_on_end
from xtrainer.loop.view import LoopTrainer


def validate(trainer: LoopTrainer, sets: Sources, rows: Rows, key: str, epoch: int) -> None:
    """Evaluates on the validation sets, once for a step; broken off, it stays pending.

    Args:
        trainer: Its state is settled.
        sets: Validation sets by prefix; nothing is done where there are none.
        rows: Of the run; what was found is among their results.
        key: Its name there.
        epoch: Of the state.
    """
    if not sets:
        return
    progress = trainer.progress
    step = progress.step
    if rows.validated is not None and rows.validated.step == step:
        rows.results[key], rows.pending = rows.validated.metrics, None
        return
    ends = "" if rows.pending is None else rows.pending.ends
    rows.pending = Pending(key, epoch, ends)
    rows.windows.flush()
    start = time.perf_counter()
    with free_transfers(trainer), trainer.ledger.spent("validation"):
        trainer.notify("on_validation_epoch_start", epoch, step)
        try:
            with trainer.interrupts.breaking_off():
                metrics = run_evaluation(trainer, sets, "val", epoch)
        except BrokenOff:  # all processes come here
            trainer.end_run(*agree_on_end(trainer.stop_wanted))
            return
        progress.validations, progress.validated_at = progress.validations + 1, step
        rows.validated, rows.pending = Validated(step, key, metrics), None
        rows.results[key] = metrics
        spent = lambda: {"time_s": time.perf_counter() - start}  # noqa: E731
        with always(lambda: rows.log_epoch({**metrics, **spent()}, "val", epoch)):
            trainer.notify("on_validation_epoch_end", metrics, epoch, step)
        trainer.notify("on_epoch_logged", "val", step)
        trainer.journal.validation()
