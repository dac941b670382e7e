"""Is a trainer built only to be looked at? Then its state is shapes, and nothing is written."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_SHAPES_ONLY = ContextVar("xtrainer_shapes_only", default=False)


@contextmanager
def shapes_only() -> Iterator[None]:
    """Lets the trainers that are built inside have the shapes of their state in place of a state.

    Such a trainer holds no array, of whatever size its model is, its mesh may consist of devices
    that do not exist, and it logs to nobody. Its steps can be lowered and compiled, its layout
    asked for; it cannot train.

    Example:
        >>> with shapes_only():
        ...     wants_shapes()
        True
        >>> wants_shapes()
        False
    """
    token = _SHAPES_ONLY.set(True)
    try:
        yield
    finally:
        _SHAPES_ONLY.reset(token)


def wants_shapes() -> bool:
    """Says whether the trainer that is being built is one of :func:`shapes_only`."""
    return _SHAPES_ONLY.get()
