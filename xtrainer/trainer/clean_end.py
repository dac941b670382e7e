"""How does an error end a run, or a test, as a request to stop would?"""

import contextlib
import logging
from collections.abc import Iterator, Sequence

from xtrainer.launch import gather, process_count
from xtrainer.loop import StopReason, failed_after
from xtrainer.trainer.exceptions import is_one_of
from xtrainer.trainer.view import TrainerView

_LOG = logging.getLogger(__name__)


@contextlib.contextmanager
def clean_end(trainer: TrainerView) -> Iterator[None]:
    """Lets the errors of ``train_exceptions`` end a run with a reason, instead of being raised.

    Of several processes all must raise one of them, and have left the steps together.
    """
    kinds = trainer.trainer_config.train_exceptions
    try:
        yield
    except Exception as error:
        if not (kinds and _all_clean(trainer, error, kinds)):
            raise
        trainer.end_run(StopReason.EXCEPTION, repr(error))
        _LOG.warning("Training ends, as train_exceptions says, because of %r.", error)


def _all_clean(trainer: TrainerView, error: Exception, kinds: Sequence[type[Exception]]) -> bool:
    # Where something has failed after it too, the state or the rows are not what they should be.
    clean = is_one_of(error, kinds) and not failed_after(error)
    if process_count() == 1:
        return clean
    # Else another process may be waiting for this one elsewhere, and would not answer.
    return trainer.may_save_failed and all(gather(clean, "exception that ends the run"))


@contextlib.contextmanager
def clean_test(trainer: TrainerView) -> Iterator[None]:
    """Lets the errors of ``test_exceptions`` end a test without metrics, on a process alone."""
    kinds = trainer.trainer_config.test_exceptions
    try:
        yield
    except Exception as error:
        if process_count() > 1 or not is_one_of(error, kinds):
            raise
        _LOG.warning("The test ends, as test_exceptions says, because of %r.", error)
