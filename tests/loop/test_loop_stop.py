"""Why a run ended, in words."""

import pytest

from xtrainer.loop import StopReason


@pytest.mark.parametrize("reason", StopReason)
def test_every_reason_is_a_sentence(reason: StopReason) -> None:
    assert reason.value[0].isupper() and reason.value.endswith(".")


@pytest.mark.parametrize(
    ("reason", "completed", "status"),
    [
        (StopReason.FINISHED, True, "completed"),
        (StopReason.NOTHING_TO_DO, True, "completed"),
        (StopReason.NONFINITE, False, "stopped"),
        (StopReason.REQUESTED, False, "stopped"),
        (StopReason.FAILED, False, "failed"),
    ],
)
def test_loggers_are_told_how_it_ended(reason: StopReason, completed: bool, status: str) -> None:
    assert (reason.completed, reason.status) == (completed, status)
