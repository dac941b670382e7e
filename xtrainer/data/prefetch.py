"""How does the next batch get ready while the device works? A thread prepares a few ahead."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any

import jax

from xtrainer.data.loader import LoaderSource
from xtrainer.data.position import LoaderPosition
from xtrainer.errors import LoaderError
from xtrainer.types import BatchLike, PyTree

_LOG = logging.getLogger(__name__)
_POLL_S = 0.5  # so that a waiting main thread sees Ctrl-C on every platform
_JOIN_S = 10.0


class Prefetcher:
    """The batches of one pass, prepared ahead by a thread, each with the position behind it.

    A batch counts as used when it is handed out; ``close`` gives those that were not back to the
    source. The thread starts with the ``with`` block or the first batch.

    Args:
        source: Where the batches come from; no one else may pull until ``close``.
        prepare: Host batch to what is handed out: padding and placement. Runs in the thread, so
            it must not depend on context managers of the caller's thread.
        size: How many batches may be read and not handed out.
        limit: How many batches are read in all, None for the rest of the pass.

    Raises:
        LoaderError: If ``size`` or ``limit`` is out of range.

    Example:
        >>> import numpy as np
        >>> source = LoaderSource([np.zeros(2), np.ones(2)], "train")
        >>> with Prefetcher(source, jax.device_put) as batches:
        ...     print([(float(batch.sum()), position.batches) for batch, position in batches])
        [(0.0, 1), (2.0, 2)]
    """

    def __init__(
        self,
        source: LoaderSource,
        prepare: Callable[[BatchLike], PyTree],
        size: int = 2,
        limit: int | None = None,
    ) -> None:
        if size < 1 or (limit is not None and limit < 0):
            raise LoaderError(
                f"Found size={size}, limit={limit} for the {source.name!r} loader, expected "
                "size >= 1 and limit >= 0 or None."
            )
        self._source = source
        self._prepare = prepare
        self._size = size
        self._limit = limit
        self._ready: deque[tuple[BatchLike, PyTree, LoaderPosition]] = deque()
        self._failed: tuple[BatchLike, LoaderPosition] | None = None  # what prepare refused
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._done = False  # the thread reads no more
        self._limited = False  # since it has read as many batches as it may
        self._closed = False

    def __enter__(self) -> "Prefetcher":
        self._start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __iter__(self) -> "Prefetcher":
        return self

    def __next__(self) -> tuple[PyTree, LoaderPosition]:
        """Returns the next prepared batch and the position behind it.

        Raises:
            StopIteration: At the end of the pass, or after ``limit`` batches.
            LoaderError: If the prefetcher was closed.
        """
        self._start()
        with self._changed:
            while not self._ready and not self._done:
                self._changed.wait(_POLL_S)
            if self._ready:
                _, placed, position = self._ready.popleft()
                self._source.commit(position)
                self._changed.notify_all()
                return placed, position
            self._give_back()
        if self._error is not None:
            raise self._error
        raise StopIteration

    def ended(self) -> bool:
        """Says whether the pass is over; waits until that is known.

        False where a batch or an error is still to come, and after ``limit`` batches.
        """
        with self._changed:
            while not self._ready and not self._done:
                self._changed.wait(_POLL_S)
            more = self._ready or self._error is not None or self._limited
            return not more

    def close(self, timeout_s: float = _JOIN_S) -> None:
        """Stops the thread and gives the batches that were not handed out back to the source.

        A thread that does not end in time, since the loader hangs, is left with a warning; it
        gives its batches back when it ends. Closing again does nothing.
        """
        if self._closed:
            return
        with self._changed:
            self._closed = True
            if self._done:
                self._give_back()
            self._changed.notify_all()
        thread = self._thread
        if thread is None:
            return
        thread.join(timeout_s)
        if thread.is_alive():
            _LOG.warning(
                "The thread %r did not end within %.1f s: the %r loader or the preparation of a "
                "batch hangs. It is left behind.", thread.name, timeout_s, self._source.name,
            )  # fmt: skip

    def _start(self) -> None:
        if self._closed:
            raise LoaderError(
                f"The prefetcher of the {self._source.name!r} loader was closed, expected an open "
                "one. Make a new Prefetcher of the same source; no batch was lost."
            )
        if self._thread is None:
            name = f"prefetch-{self._source.name}"
            thread = threading.Thread(target=self._run, name=name, daemon=True)
            self._source.claim(thread)
            self._thread = thread
            thread.start()

    def _run(self) -> None:
        """Reads and prepares until the end, an error or ``close``; the body of the thread."""
        try:
            count = 0
            while self._limit is None or count < self._limit:
                if not self._wait_for_room():
                    break
                batch, position = self._source.pull(self._thread)
                count += 1
                self._add(batch, position)
            self._limited = count == self._limit
        except StopIteration:
            pass
        except BaseException as error:  # handed to the consumer, whatever it is
            self._error = error
        with self._changed:
            self._done = True
            if self._closed:
                self._give_back()
            self._changed.notify_all()

    def _wait_for_room(self) -> bool:
        """Returns True when a batch may be read, False when the prefetcher was closed."""
        with self._changed:
            while len(self._ready) >= self._size and not self._closed:
                self._changed.wait()
            return not self._closed

    def _add(self, batch: BatchLike, position: LoaderPosition) -> None:
        # Kept until it is in the queue, so that close gives it back if prepare fails.
        self._failed = (batch, position)
        try:
            placed = None if self._closed else self._prepare(batch)
        except StopIteration as error:  # would pass for the end of the loader
            failure = RuntimeError("The preparation of a batch raised StopIteration.")
            failure.add_note(self._source.note(position.batches))
            raise failure from error
        except BaseException as error:
            error.add_note(self._source.note(position.batches))
            raise
        with self._changed:
            self._ready.append((batch, placed, position))
            self._failed = None
            self._changed.notify_all()

    def _give_back(self) -> None:
        entries = [(batch, position) for batch, _, position in self._ready]
        if self._failed is not None:
            entries.append(self._failed)
        self._ready.clear()
        self._failed = None
        self._source.push_back(entries)
        self._source.release(self._thread)


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
