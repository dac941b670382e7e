"""Who asks this program to end, and how? The one place that handles signals.

While a run is under way, the first SIGTERM, SIGINT, SIGUSR1 or SIGHUP is a wish: the loop finishes
its step, saves, and ends. A second one leaves at once; that is a kill, which checkpoints survive.

Handlers of Python run in the main thread between two bytecodes, so not while it waits in a compiled
program. So Python's C handler writes the number of each signal to a pipe, and a thread reads it;
nothing of ours runs in a handler.
"""

import contextlib
import ctypes
import functools
import itertools
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from xtrainer.launch.exits import leave_now

_LOG = logging.getLogger(__name__)

CODES = {
    number: 128 + (signal.SIGINT if name == "SIGINT" else signal.SIGTERM)
    for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")
    if (number := getattr(signal, name, None)) is not None
}
"""What a program ends with after each signal: 130 after SIGINT, else 143."""
NOTICE = 0
"""Stands for JAX's notice of a preemption, where a signal has a number."""
_SAME_S = 0.3
"""Signals that come closer together are one: a terminal and a launcher may both send it."""
_CLOSE = 255  # no signal has this number


class BrokenOff(Exception):
    """What was under way is left unfinished, since the program is asked to end."""


class Interrupts:
    """The signals that come while it is entered, and what was asked with them.

    In another thread than the main one nothing is installed. A signal that is ignored, as by
    ``nohup``, stays so. What was installed before is called too, except for Python's own handler of
    SIGINT, and is back afterwards, also where it is not Python's but JAX's.

    Args:
        on_first: Called with the number of the first signal, in a thread.
        leave: Called with the exit code for a second one.
        enabled: Whether to install anything.

    Attributes:
        asked: The number of the first signal, ``NOTICE`` for JAX's notice; None: nothing came.
        may_break_off: Whether what is under way may be left unfinished, since it can be done again.
    """

    def __init__(
        self,
        on_first: Callable[[int], None] = lambda number: None,
        leave: Callable[[int], None] = leave_now,
        enabled: bool = True,
    ) -> None:
        self.asked: int | None = None
        self.may_break_off = False
        self._on_first = on_first
        self._leave = leave
        self._enabled = enabled
        self._asked_at = 0.0
        self._installed: dict[int, Any] = {}
        self._native: dict[int, Any] = {}
        self._close: Callable[[], None] | None = None
        self._previous_fd = -1

    @property
    def breaks_off(self) -> bool:
        """Whether what is under way is to be left unfinished."""
        return self.may_break_off and self.asked is not None

    @contextlib.contextmanager
    def breaking_off(self) -> Any:
        """Lets what is done inside be left unfinished where the program is asked to end."""
        before, self.may_break_off = self.may_break_off, True
        try:
            yield
        finally:
            self.may_break_off = before

    def ask(self, number: int) -> None:
        """Takes the wish to end, or the second one; called by the thread, and for JAX's notice."""
        if self.asked is None:
            self.asked, self._asked_at = number, time.monotonic()
            _asked_to_end().note(number)
            self._on_first(number)
        elif self._is_second() and number != NOTICE and not _is_interactive(number):
            print(f"{_name(number)} came again: this process leaves at once.", file=sys.stderr)
            self._leave(CODES[number])

    def pass_on(self) -> None:
        """Sends the first signal again, once this is left: to what was installed before."""
        if self.asked:
            os.kill(os.getpid(), self.asked)

    def __enter__(self) -> "Interrupts":
        in_main = threading.current_thread() is threading.main_thread()
        if not self._enabled or not in_main:
            return self
        self._close = self._start_listening()
        for number in CODES:
            if signal.getsignal(number) is signal.SIG_IGN:
                _LOG.info("%s is ignored by this process, as it was started.", _name(number))
                continue
            self._native[number] = _read_native(number)
            self._installed[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._close is None:
            return
        for number, previous in self._installed.items():
            if signal.getsignal(number) == self._handle:  # else someone has put another one there
                signal.signal(number, signal.SIG_DFL if previous is None else previous)
                _write_native(number, self._native[number])
        self._close()
        self._close = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # The thread hears of it by itself; this is for what was installed before.
        previous = self._installed.get(number)
        if previous is signal.default_int_handler:
            if _is_interactive(number) and self._is_second():
                raise KeyboardInterrupt
        elif callable(previous):
            previous(number, frame)

    def _is_second(self) -> bool:
        return self.asked is not None and time.monotonic() - self._asked_at > _SAME_S

    def _start_listening(self) -> Callable[[], None]:
        """Starts the thread that hears of signals; returns what ends it."""
        read, write = os.pipe()
        os.set_blocking(write, False)
        thread = threading.Thread(
            target=self._listen, args=(read,), name="xtrainer-signals", daemon=True
        )
        self._previous_fd = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        thread.start()

        def close() -> None:
            signal.set_wakeup_fd(self._previous_fd)
            os.write(write, bytes([_CLOSE]))
            thread.join()
            os.close(read)
            os.close(write)

        return close

    def _listen(self, pipe: int) -> None:
        while True:
            for number in os.read(pipe, 64):
                if number == _CLOSE:
                    return
                if self._previous_fd >= 0:  # an event loop that waits for signals
                    with contextlib.suppress(OSError):
                        os.write(self._previous_fd, bytes([number]))
                if number in CODES:
                    self.ask(number)


class _AskedToEnd:
    """Whether this process is to end; what it does after a run was ended, is not begun anew."""

    def __init__(self) -> None:
        self.number: int | None = None

    def note(self, number: int) -> None:
        if number != signal.SIGINT:  # that one is for the run; another may be begun
            self.number = number


@functools.cache
def _asked_to_end() -> _AskedToEnd:
    return _AskedToEnd()


def asked_to_end() -> int | None:
    """Returns the signal by which this process was asked to end for good; None: it was not."""
    return _asked_to_end().number


def forget_signals() -> None:
    """Forgets that this process was asked to end: for programs that outlive it, such as tests."""
    _asked_to_end().number = None


_NOTICES = itertools.count(1)


def preemption_noticed() -> bool:
    """Says whether JAX has noticed that a process of the run is to be preempted.

    Every process calls this equally often, and each gets True in the same call. A SIGTERM that
    comes before :class:`Interrupts` is entered is swallowed by JAX, and shows here.
    """
    manager = _sync_manager()
    return manager is not None and manager.reached_sync_point(next(_NOTICES))


def _sync_manager() -> Any:
    from jax._src import distributed  # what multihost_utils asks, which raises where it is off

    return distributed.global_state.preemption_sync_manager


def _name(number: int) -> str:
    return "JAX's notice of a preemption" if number == NOTICE else signal.Signals(number).name


def describe(number: int) -> str:
    """Returns a sentence about what came.

    Example:
        >>> describe(signal.SIGTERM)
        'SIGTERM came.'
    """
    return f"{_name(number)} came."


def _is_interactive(number: int) -> bool:
    """Says whether a second Ctrl-C is for Python, as in a notebook, which must live on."""
    return number == signal.SIGINT and (hasattr(sys, "ps1") or "ipykernel" in sys.modules)


_SIGACTION_BYTES = 512  # more than any system's


def _read_native(number: int) -> Any:
    """Returns what the system calls for a signal, which may be a handler that Python cannot see."""
    try:
        action = ctypes.create_string_buffer(_SIGACTION_BYTES)
        found = ctypes.CDLL(None).sigaction(number, None, action)
        return action if found == 0 else None
    except (OSError, AttributeError):  # no such library, or function
        return None


def _write_native(number: int, action: Any) -> None:
    if action is not None:
        ctypes.CDLL(None).sigaction(number, action, None)
