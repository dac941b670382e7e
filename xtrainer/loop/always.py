"""How is something done after a failure, so that the first error stays the one that is raised?"""

import contextlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def always(action: Callable[[], None]) -> Iterator[None]:
    """Does something after the block in any case; where both fail, the block's error is raised.

    Example:
        >>> def fail() -> None:
        ...     raise OSError("second")
        >>> try:
        ...     with always(fail):
        ...         raise ValueError("first")
        ... except ValueError as error:
        ...     print(error, error.__notes__)
        first ['After it: OSError: second']
    """
    try:
        yield
    except BaseException as error:
        with noted(error):
            action()
        raise
    action()


_AFTER = "After it: "


def failed_after(error: BaseException) -> bool:
    """Says whether something failed after an error as well, while things were put in order.

    Example:
        >>> first = ValueError("first")
        >>> with noted(first):
        ...     raise OSError("second")
        >>> failed_after(first), failed_after(OSError())
        (True, False)
    """
    return any(note.startswith(_AFTER) for note in getattr(error, "__notes__", ()))


@contextlib.contextmanager
def noted(error: BaseException) -> Iterator[None]:
    """Makes what fails inside a note of an error, which is the one to raise.

    Example:
        >>> first = ValueError("first")
        >>> with noted(first):
        ...     raise OSError("second")
        >>> first.__notes__
        ['After it: OSError: second']
    """
    try:
        yield
    except BaseException as other:
        if other is not error:
            error.add_note(f"{_AFTER}{type(other).__name__}: {other}")
