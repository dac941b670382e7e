"""Why a run ended, in words."""

import pytest

from xtrainer.loop import StopReason


@pytest.mark.parametrize("reason", StopReason)
def test_every_reason_is_a_sentence(reason: StopReason) -> None:
    assert reason.value[0].isupper() and reason.value.endswith(".")


@pytest.mark.parametrize(
    ("reason", "completed", "status", "code"),
    [
        (StopReason.FINISHED, True, "completed", 0),
        (StopReason.NOTHING_TO_DO, True, "completed", 0),
        (StopReason.NONFINITE, False, "stopped", 3),
        (StopReason.UNSTABLE, False, "stopped", 3),
        (StopReason.REQUESTED, False, "stopped", 0),
        (StopReason.INTERRUPTED, False, "stopped", 130),
        (StopReason.PREEMPTED, False, "stopped", 143),
        (StopReason.EXCEPTION, False, "stopped", 0),
        (StopReason.FAILED, False, "failed", 1),
    ],
)
def test_loggers_and_the_program_are_told_how_it_ended(
    reason: StopReason, completed: bool, status: str, code: int
) -> None:
    assert (reason.completed, reason.status, reason.exit_code) == (completed, status, code)
