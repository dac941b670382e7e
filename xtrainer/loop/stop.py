"""Why did the run end? Reasons whose values are the message."""

import enum


class StopReason(enum.Enum):
    """Why ``train_model`` returned; the value is a sentence for people."""

    FINISHED = "All requested epochs or steps are done."
    NOTHING_TO_DO = "The state was already at the requested number of epochs or steps."
    NONFINITE = "A step was not finite; the state is as the last finite step left it."
    REQUESTED = "A callback or the caller asked to stop."
    FAILED = "An error ended the run."

    @property
    def completed(self) -> bool:
        """Whether the requested work is done."""
        return self in (StopReason.FINISHED, StopReason.NOTHING_TO_DO)

    @property
    def status(self) -> str:
        """What loggers and callbacks are told: ``completed``, ``stopped`` or ``failed``."""
        if self.completed:
            return "completed"
        return "failed" if self is StopReason.FAILED else "stopped"
