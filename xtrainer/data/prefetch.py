"""How does the next batch get ready while the device works? A thread prepares a few ahead."""

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType

import jax

from xtrainer.data.loader import LoaderSource
from xtrainer.data.position import LoaderPosition
from xtrainer.data.stalled import StallWatch
from xtrainer.errors import LoaderError, LoaderTimeoutError
from xtrainer.types import BatchLike, PyTree

_LOG = logging.getLogger(__name__)
_POLL_S = 0.5  # so that a waiting main thread sees Ctrl-C on every platform
_JOIN_S = 10.0
_SIZE = 2
_SMALL_BYTES = 2**15
_SIZE_IF_SMALL = 32
_BURST = _SIZE_IF_SMALL // 2

_QUICK_S = 1e-4
"""Seconds for a batch below which a thread costs more than it saves."""
_TRIED = 16
_SLOW_S = 2e-3

Entry = tuple[BatchLike, PyTree, LoaderPosition]


class Prefetcher:
    """The batches of one pass, prepared ahead by a thread, each with the position behind it.

    A batch counts as used when it is handed out; ``close`` gives those that were not back to the
    source. The thread starts with the ``with`` block or the first batch.

    Args:
        source: Where the batches come from; no one else may pull until ``close``.
        prepare: Host batch to what is handed out: padding and placement. Runs in the thread, so
            it must not depend on context managers of the caller's thread.
        size: How many batches may be read and not handed out; None: 2, and 32 where they have at
            most 32 KiB, since the two threads would wait for each other more than they work.
        limit: How many batches are read in all, None for the rest of the pass.
        may_inline: Whether batches of a loader that turns out to be quick (less than 100 us for
            each) may be read by the caller of ``next`` itself, until they come slowly again. Two
            threads of Python take turns, which costs more than such a batch does. A loader that
            hangs then is not found out here, since the caller is what hangs.

    Attributes:
        waited_s: Seconds for which ``next`` has waited for the thread.
        breaks_off: Asked while ``next`` waits; where it says True, the batches end there.
        was_broken_off: Whether they have.
        skips: Asked with the position behind each batch; where it says True, the batch is left out.

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
        size: int | None = _SIZE,
        limit: int | None = None,
        may_inline: bool = False,
    ) -> None:
        if (size is not None and size < 1) or (limit is not None and limit < 0):
            raise LoaderError(
                f"Found size={size}, limit={limit} for the {source.name!r} loader, expected "
                "size >= 1 and limit >= 0, or None."
            )
        self.waited_s = 0.0
        self.breaks_off: Callable[[], bool] = lambda: False
        self.was_broken_off = False
        self.skips: Callable[[LoaderPosition], bool] = lambda position: False
        self._gave_up = False  # the loader hangs
        self._source = source
        self._prepare = prepare
        self._size = size
        self._limit = limit
        self._count = 0  # batches that were read
        self._may_inline = may_inline
        self._is_inline = may_inline and source.is_quick
        # Queues in C, and room for small batches given back by the half: a lock for each would cost
        # more than such a batch does.
        self._ready: queue.SimpleQueue[Entry | None] = queue.SimpleQueue()  # None: no more
        self._room: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._taken = 0  # and no room given back for it yet
        self._burst = 1
        self._held: deque[Entry] = deque()  # looked at by ``ended``, or read in one burst
        self._failed: tuple[BatchLike, LoaderPosition] | None = None  # what prepare refused
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._done = False  # the last entry was seen
        self._limited = False  # as many batches were read as may be
        self._handed_over = False  # the thread has left the rest to the caller
        self._closed = False
        self._end = threading.Lock()  # who is last gives the batches back

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

    def __repr__(self) -> str:
        """Returns how error messages name a reader."""
        return f"the prefetcher of the {self._source.name!r} loader"

    def __iter__(self) -> "Prefetcher":
        return self

    def __next__(self) -> tuple[PyTree, LoaderPosition]:
        """Returns the next prepared batch and the position behind it.

        Raises:
            StopIteration: At the end of the pass, or after ``limit`` batches.
            LoaderError: If the prefetcher was closed.
            LoaderTimeoutError: If no batch came for the ``timeout_s`` of the source.
        """
        held = self._held
        entry = held.popleft() if held else self._get()
        if entry is not None:
            self._source.commit(entry[2])
            return entry[1:]
        if self.was_broken_off:
            raise StopIteration
        self._give_back()
        if self._error is not None:
            raise self._error
        raise StopIteration

    def ended(self) -> bool:
        """Says whether the pass is over; waits until that is known.

        False where a batch or an error is still to come, and after ``limit`` batches.
        """
        if not self._held:
            entry = self._get()
            if entry is not None:
                self._held.appendleft(entry)
        return not self._held and self._error is None and not self._limited

    def close(self, timeout_s: float = _JOIN_S) -> None:
        """Stops the thread and gives the batches that were not handed out back to the source.

        A thread that does not end in time, since the loader hangs, is left with a warning; it
        gives its batches back when it ends. One that was waited for in vain is left at once.
        Closing again does nothing.
        """
        if self._closed:
            return
        with self._end:
            self._closed = True
        self._is_inline = False
        thread = self._thread
        if thread is None:
            self._give_back()  # what was read without one, and looked at only
            return
        self._room.put(1)  # it may be waiting
        if self._gave_up:
            timeout_s = 0.0
        elif self.breaks_off():
            timeout_s = _POLL_S
        thread.join(timeout_s)
        with self._end:
            if not thread.is_alive() or self._done:
                self._give_back()
                return
        if not self._gave_up:
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
        if self._is_inline:
            self._source.claim(self)
        elif self._thread is None:
            self._source.release(self)  # after batches that came slowly
            name = f"prefetch-{self._source.name}"
            thread = threading.Thread(target=self._run, name=name, daemon=True)
            self._source.claim(thread)
            self._thread = thread
            thread.start()

    def _get(self) -> Entry | None:
        """Returns the next entry, None at the end; waits for it."""
        if self._is_inline:
            return self._read_burst()
        if self._thread is None or self._closed:
            self._start()
        if self._done:
            return None
        try:
            entry = self._ready.get_nowait()
        except queue.Empty:
            entry = self._wait()
        if entry is None and self._source.is_quick and self._handed_over:
            self._take_over()
            return self._get()
        if entry is None and self.was_broken_off:
            return None
        self._done = entry is None
        self._taken += 1
        if self._taken >= self._burst:
            self._room.put(self._taken)
            self._taken = 0
        return entry

    def _take_over(self) -> None:
        """Goes on without the thread, which has ended."""
        if self._thread is not None:
            self._thread.join()
            self._source.release(self._thread)
        self._thread, self._handed_over, self._is_inline = None, False, True
        self._source.claim(self)

    def _read_burst(self) -> Entry | None:
        """Reads and prepares the next batches in the caller's thread; returns the first of them.

        One after the other takes a third of the time that each would take between two steps.
        """
        if self._count == 0:
            self._start()
        first = self._read_inline()
        if first is not None and self._size is None and _num_bytes(first[0]) <= _SMALL_BYTES:
            self._burst = _BURST
        for _ in range(self._burst - 1):
            entry = self._read_inline() if self._is_inline else None
            if entry is None:
                break
            self._held.append(entry)
        return first

    def _read_inline(self) -> Entry | None:
        """Reads and prepares the next batch in the caller's thread."""
        if self._done:
            return None
        if self._count == self._limit:
            self._limited = self._done = True
            return None
        start, position = time.perf_counter(), None
        try:
            batch, position = self._source.pull(self)
            while self.skips(position):
                batch, position = self._source.pull(self)
            self._count += 1
            entry = (batch, self._prepare(batch), position)
        except BaseException as error:
            self._done = True
            if position is not None:
                self._failed = (batch, position)
                self._error = self._explained(error, position)
            elif not isinstance(error, StopIteration):
                self._error = error
            return None
        spent = time.perf_counter() - start
        if spent > _SLOW_S:  # the next ones are read ahead again
            self.waited_s += spent
            self._source.is_quick = self._is_inline = False
        return entry

    def _wait(self) -> Entry | None:
        source, start = self._source, time.perf_counter()
        batch = source.position.batches + len(self._held) + 1
        watch = StallWatch(source.name, batch, source.timeout_s, self._thread)
        try:
            while True:
                try:
                    return self._ready.get(timeout=watch.pause_s(_POLL_S))
                except queue.Empty:
                    if self.breaks_off():
                        self.was_broken_off = True
                        return None
                    watch.check()
        except LoaderTimeoutError:
            self._gave_up = True
            raise
        finally:
            self.waited_s += time.perf_counter() - start

    def _run(self) -> None:
        """Reads and prepares until the end, an error or ``close``; the body of the thread."""
        try:
            self._read()
        except StopIteration:
            pass
        except BaseException as error:  # handed to the consumer, whatever it is
            self._error = error
        with self._end:
            self._ready.put(None)
            if self._closed:
                self._give_back()

    def _read(self) -> None:
        room = self._size or _SIZE
        first, busy_s = self._count, 0.0
        while self._count != self._limit:
            while room <= 0 and not self._closed:
                room += self._room.get()
            if self._closed:
                return
            start = time.perf_counter() if self._may_inline else 0.0
            batch, position = self._source.pull(self._thread)
            if self.skips(position):
                continue
            self._count += 1
            room -= 1
            self._add(batch, position)
            count = self._count - first
            if self._may_inline:
                busy_s += time.perf_counter() - start
                if count % _TRIED == 0:  # the first ones take longer to begin with
                    if busy_s < _TRIED * _QUICK_S:
                        self._source.is_quick = self._handed_over = True
                        return
                    busy_s = 0.0
            if count == 1 and self._size is None and _num_bytes(batch) <= _SMALL_BYTES:
                room += _SIZE_IF_SMALL - _SIZE
                self._burst = _BURST
        self._limited = True

    def _add(self, batch: BatchLike, position: LoaderPosition) -> None:
        # Kept until it is in the queue, so that close gives it back if prepare fails.
        self._failed = (batch, position)
        placed = None if self._closed else self._prepared(batch, position)
        self._ready.put((batch, placed, position))
        self._failed = None

    def _prepared(self, batch: BatchLike, position: LoaderPosition) -> PyTree:
        try:
            return self._prepare(batch)
        except BaseException as error:
            explained = self._explained(error, position)
            raise explained from explained.__cause__

    def _explained(self, error: BaseException, position: LoaderPosition) -> BaseException:
        """Returns the error of a preparation with the batch that it came up with."""
        if isinstance(error, StopIteration):  # would pass for the end of the loader
            failure = RuntimeError("The preparation of a batch raised StopIteration.")
            failure.__cause__ = error
            error = failure
        error.add_note(self._source.note(position.batches))
        return error

    def _give_back(self) -> None:
        """Gives the source what was read and not handed out; nothing the second time."""
        entries = list(self._held)
        while not self._ready.empty():
            entry = self._ready.get()
            entries += [] if entry is None else [entry]
        unused = [(batch, position) for batch, _, position in entries]
        if self._failed is not None:
            unused.append(self._failed)
        self._held.clear()
        self._failed = None
        self._done = True
        self._source.push_back(unused)
        self._source.release(self._thread)
        self._source.release(self)


def _num_bytes(batch: BatchLike) -> int:
    return sum(getattr(leaf, "nbytes", 0) for leaf in jax.tree.leaves(batch))
