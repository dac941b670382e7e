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
            error.add_note(f"After it: {type(other).__name__}: {other}")
