"""What is the next batch, without using it up, and without waiting for ever?"""

from xtrainer.data.loader import LoaderSource
from xtrainer.data.prefetch import Prefetcher
from xtrainer.types import BatchLike


def peek_ahead(source: LoaderSource) -> BatchLike:
    """Returns the next batch, which stays the next one; a thread reads it.

    Args:
        source: No one else may read it meanwhile.

    Raises:
        StopIteration: At the end of the pass.
        LoaderTimeoutError: If none came for the ``timeout_s`` of the source.

    Example:
        >>> import numpy as np
        >>> source = LoaderSource([np.zeros(2), np.ones(2)], "train")
        >>> peek_ahead(source) is peek_ahead(source)
        True
    """
    with Prefetcher(source, lambda batch: batch, size=1, limit=1) as ahead:
        ahead.ended()
    return source.peek()  # which is read by now, or raises what reading it has raised
