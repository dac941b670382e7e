"""Which errors may a run, or a test, end with cleanly?"""

from collections.abc import Sequence

from xtrainer.errors import CheckpointError, ConfigError, PeerError, XTrainerError

NEVER_CLEAN = (ConfigError, CheckpointError, PeerError)
"""Errors after which a run cannot be said to have ended as it was asked to."""


def exception_problems(name: str, kinds: Sequence[type[Exception]]) -> list[str]:
    """Returns what cannot be among the errors that end something cleanly.

    Args:
        name: Of the field, for messages.
        kinds: Its value.
    """
    found = []
    for kind in kinds:
        if not (isinstance(kind, type) and issubclass(kind, Exception)):
            found.append(f"{name}: found {kind!r}, expected classes that derive from Exception.")
        elif kind in (Exception, XTrainerError) or issubclass(kind, NEVER_CLEAN):
            found.append(
                f"{name}: found {kind.__qualname__}, after which a run cannot count as ended "
                "cleanly. Name the errors that are meant, best by a class of your own."
            )
    return found


def is_one_of(error: BaseException, kinds: Sequence[type[Exception]]) -> bool:
    """Says whether an error is of one of these classes; xtrainer's own must be named as such.

    Example:
        >>> from xtrainer.errors import LossError  # which is a ValueError as well
        >>> is_one_of(ValueError(), (ValueError,)), is_one_of(LossError(), (ValueError,))
        (True, False)
    """
    own = isinstance(error, XTrainerError)
    kinds = [kind for kind in kinds if issubclass(kind, XTrainerError) or not own]
    return isinstance(error, tuple(kinds)) and not isinstance(error, NEVER_CLEAN)
