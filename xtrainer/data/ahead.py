"""How does a loop of my own read ahead? One call around any loader."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax

from xtrainer.data.loader import LoaderSource
from xtrainer.data.prefetch import Prefetcher
from xtrainer.types import BatchLike, PyTree


def prefetch(
    loader: Iterable[BatchLike] | LoaderSource,
    prepare: Callable[[BatchLike], Any] | None = None,
    size: int = 2,
) -> Iterator[PyTree]:
    """Returns the batches of one pass over a loader, prepared ahead by a thread.

    The thread ends with the generator. Up to ``size`` batches have been taken from an iterator
    that is not read to its end; pass a ``LoaderSource`` to read on with those.

    Args:
        loader: Any iterable of batches. Buffers that it fills again are copied first.
        prepare: What is done with each host batch, ``jax.device_put`` if None.
        size: How many batches are prepared ahead.

    Raises:
        LoaderError: If the loader is not iterable, or ``size`` is not positive.

    Example:
        >>> import numpy as np
        >>> [float(batch.sum()) for batch in prefetch([np.ones(2), np.ones(3)])]
        [2.0, 3.0]
    """
    source = loader if isinstance(loader, LoaderSource) else LoaderSource(loader, "prefetch")
    return _batches(Prefetcher(source, prepare or jax.device_put, size))


def _batches(prefetcher: Prefetcher) -> Iterator[PyTree]:
    with prefetcher:
        for placed, _ in prefetcher:
            yield placed
