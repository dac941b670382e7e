"""Is a value a number of steps, epochs or rows? A whole one, and no larger than devices count."""

from typing import Any

import numpy as np

MAX_COUNT = 2**31 - 1
"""The largest step: a state counts its steps in an int32, which would go on below zero."""
MAX_SEED = 2**32 - 1
"""The largest seed of a key: JAX cuts off what is above, and two seeds would be one."""


def as_int(value: Any) -> Any:
    """Returns a whole number, NumPy's included, as a Python integer, and all else as it is.

    Example:
        >>> as_int(np.int64(3)), as_int(True), as_int(3.0), as_int("latest")
        (3, True, 3.0, 'latest')
    """
    return int(value) if isinstance(value, np.integer) else value


def wanted_count(value: Any, least: int = 0, most: int = MAX_COUNT) -> str | None:
    """Returns what was expected instead of a value; None for a number that can be.

    Args:
        value: Python's or NumPy's; True and False are no numbers, nor is 3.0.
        least: The smallest number that can be.
        most: The largest one.

    Example:
        >>> wanted_count(np.int64(3)), wanted_count(True)
        (None, 'a whole number >= 0')
        >>> wanted_count(2**31, least=1)
        'a whole number <= 2147483647'
    """
    value = as_int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        return f"a whole number >= {least}"
    return f"a whole number <= {most}" if value > most else None
