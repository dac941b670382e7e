"""Who does what a run does not wait for? A thread of its own, which nothing waits for for ever.

Those of ``concurrent.futures`` are joined when Python ends, however long they take.
"""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

Job = tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]


class Background:
    """A thread that does one thing after the other, begun with the first.

    Args:
        name: Of the thread.

    Example:
        >>> background = Background("example")
        >>> background.submit(max, 3, 4).result(5.0)
        4
        >>> background.close(5.0)
        True
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, call: Callable[..., Any], *args: Any) -> Future[Any]:
        """Returns what will hold the result of a call."""
        if self._thread is None:
            # A daemon: one that is stuck does not hold up the end of the process.
            self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
            self._thread.start()
        done: Future[Any] = Future()
        self._jobs.put((done, call, args))
        return done

    def close(self, timeout_s: float) -> bool:
        """Waits until all is done, and says whether it was in time; then it is left behind."""
        if self._thread is None:
            return True
        self._jobs.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            done, call, args = job
            try:
                done.set_result(call(*args))
            except BaseException as error:  # raised where the result is asked for
                done.set_exception(error)
            del job, done, call, args  # what they hold is not kept until the next one
