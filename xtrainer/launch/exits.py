"""With which code does a program end? With that of the error that nobody has caught.

Python ends with 1 after any error, and with 0 where there was none. Whoever starts a run again by
a script wants to know more: whether there is no checkpoint to go on from (5), whether none could
be written (4), whether the run hangs (124), has met only steps that are not finite (3), or was
asked to end and has saved (130 after Ctrl-C, else 143). 0 is for work that is done.
"""

import atexit
import contextlib
import functools
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

from xtrainer.launch.waits import within

ERROR_CODE = 1
_FLUSH_S = 1.0
_SIGNALS = 128
"""Codes from here on say that a signal has ended the program."""


class _Exit:
    """What is known of the end of this program."""

    def __init__(self) -> None:
        self.code: int | None = None  # of the error that nobody has caught
        self.of_run = 0  # of the newest run
        self.is_program = False  # whether the whole program is there for its runs
        self.leaves_after = False  # a thread will end the program where others hold it up
        self.farewells: list[Callable[[], None]] = []
        previous = sys.excepthook

        def hook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
            self.code = getattr(error, "exit_code", ERROR_CODE)
            previous(kind, error, trace)

        sys.excepthook = hook
        atexit.register(self.leave)

    def leave(self) -> None:
        """Ends the program now, where its code is another one than Python's."""
        code = self.code
        if code is None:
            code = self.of_run if self.is_program or self.of_run >= _SIGNALS else 0
        if code not in (0, ERROR_CODE):
            leave_now(code)


@functools.cache
def watch_exit() -> _Exit:
    """Lets this program end with the code of an error that nobody catches; once is enough."""
    return _Exit()


def is_program_of_runs() -> None:
    """Says that this program is there for its runs, so that their codes are its own."""
    watch_exit().is_program = True


def exit_code() -> int:
    """Returns the code of the error that nobody has caught, by default 1."""
    code = watch_exit().code
    return ERROR_CODE if code is None else code


def code_of_run() -> int:
    """Returns the code that the newest run of this program asks for, 0 where there was none."""
    return watch_exit().of_run


def note_end_of_run(code: int) -> None:
    """Lets this program end with a code where it ends without an error; the newest run counts.

    After a signal in any case, else where the program has called ``initialize()``: a test or a
    notebook does not fail because one of its runs has met NaN.

    Args:
        code: 0 where the work of the run is done.
    """
    watch_exit().of_run = code


def before_leaving(call: Callable[[], None]) -> Callable[[], None]:
    """Lets :func:`leave_now` call something first, for a moment; returns what takes that back."""
    farewells = watch_exit().farewells
    farewells.append(call)
    return lambda: farewells.remove(call)


def leave_now(code: int) -> NoReturn:
    """Ends this process as it is, with what was logged and printed, and without waiting for it.

    Args:
        code: What the process ends with.
    """
    within(_FLUSH_S, _flush)
    os._exit(code)


def leave_in_any_case(code: int, grace_s: float) -> None:
    """Sees to it that this process ends although a thread of it is stuck for ever.

    Args:
        code: What it ends with then, where no error has ended the program.
        grace_s: Seconds that it has, once the program is over, to end by itself.
    """
    exit = watch_exit()
    if exit.leaves_after:
        return
    exit.leaves_after = True

    def leave() -> None:
        threading.main_thread().join()
        time.sleep(grace_s)
        leave_now(code if exit.code is None else exit.code)

    threading.Thread(target=leave, name="xtrainer-exit", daemon=True).start()


def _flush() -> None:
    for call in list(watch_exit().farewells):
        with contextlib.suppress(Exception):
            call()
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
