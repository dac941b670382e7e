"""Where does a loader hang? A warning after a while, then an error, with the place in its code."""

import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable

from xtrainer.errors import LoaderTimeoutError

_LOG = logging.getLogger(__name__)
_LEAST_WARN_S = 10.0
_WARN_IF_ENDLESS_S = 180.0
_FRAMES = 6


class StallWatch:
    """Watches one wait for a batch.

    Args:
        name: Of the loader.
        batch: Number of the batch, from 1 in each pass.
        timeout_s: Seconds after which the wait is an error; 0 or less: never.
        thread: That reads the loader.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        name: str,
        batch: int,
        timeout_s: float,
        thread: threading.Thread | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what = f"batch {batch} of the {name!r} loader"
        self._timeout_s = timeout_s if timeout_s > 0 else float("inf")
        warn_s = timeout_s / 10 if timeout_s > 0 else _WARN_IF_ENDLESS_S
        self._warn_s = max(warn_s, _LEAST_WARN_S)
        self._thread = thread
        self._clock = clock
        self._since = clock()

    def pause_s(self, longest_s: float) -> float:
        """Returns for how long to wait before the next :meth:`check`, at most ``longest_s``."""
        return min(longest_s, max(self._since + self._timeout_s - self._clock(), 0.001))

    def check(self) -> None:
        """Warns once when the wait is long.

        Raises:
            LoaderTimeoutError: When it is too long.
        """
        waited_s = self._clock() - self._since
        if waited_s >= self._timeout_s:
            raise LoaderTimeoutError(
                f"Found no {self._what} after {waited_s:.0f} s, expected one within "
                f"loader_timeout_s={self._timeout_s:g}. Look at what the loader waits for, or set "
                f"TrainerConfig(loader_timeout_s=...) to more, 0 for no limit. {self._place()}"
            )
        if waited_s >= self._warn_s:
            self._warn_s = float("inf")
            limit = "" if self._timeout_s == float("inf") else (
                f" It is an error after {self._timeout_s:g} s (loader_timeout_s)."
            )  # fmt: skip
            _LOG.warning(
                "Waiting for %s since %.0f s.%s %s", self._what, waited_s, limit, self._place()
            )

    def _place(self) -> str:
        """Returns where the thread of the loader stands."""
        ident = None if self._thread is None else self._thread.ident
        frame = None if ident is None else sys._current_frames().get(ident)
        if self._thread is None or frame is None:
            return "The thread that reads it has ended."
        lines = traceback.format_list(traceback.extract_stack(frame)[-_FRAMES:])
        return f"Its thread {self._thread.name!r} stands at:\n{''.join(lines)}".rstrip()
