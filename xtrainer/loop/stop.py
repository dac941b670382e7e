"""Why did the run end? Reasons whose values are the message."""

import enum


class StopReason(enum.Enum):
    """Why ``train_model`` returned; the value is a sentence for people."""

    FINISHED = "All requested epochs or steps are done."
    NOTHING_TO_DO = "The state was already at the requested number of epochs or steps."
    NONFINITE = "A step was not finite; the state is as the last finite step left it."
    UNSTABLE = "The loss has spiked, and the run may go back no more."
    REQUESTED = "A callback or the caller asked to stop."
    INTERRUPTED = "The run was interrupted (SIGINT, Ctrl-C) and has ended after its step."
    PREEMPTED = "The process was asked to end (SIGTERM, a preemption); the run has ended first."
    EXCEPTION = "An error that ends a run cleanly was raised (train_exceptions)."
    FAILED = "An error ended the run."

    @property
    def completed(self) -> bool:
        """Whether the requested work is done."""
        return self in (StopReason.FINISHED, StopReason.NOTHING_TO_DO)

    @property
    def was_asked_from_outside(self) -> bool:
        """Whether a signal has ended the run, which is to go on later."""
        return self in (StopReason.INTERRUPTED, StopReason.PREEMPTED)

    @property
    def is_cut_short(self) -> bool:
        """Whether the run ended where it was, so that its last step is saved in any case."""
        return self.was_asked_from_outside or self is StopReason.EXCEPTION

    @property
    def exit_code(self) -> int:
        """What a program ends with whose run has ended so: 0 only where nothing more is wanted."""
        return _CODES.get(self, 0)

    @property
    def status(self) -> str:
        """What loggers and callbacks are told: ``completed``, ``stopped`` or ``failed``."""
        if self.completed:
            return "completed"
        return "failed" if self is StopReason.FAILED else "stopped"


_CODES = {
    StopReason.NONFINITE: 3,
    StopReason.UNSTABLE: 3,
    StopReason.INTERRUPTED: 130,
    StopReason.PREEMPTED: 143,
    StopReason.FAILED: 1,
}
