"""With which code does a program end? With that of the error that nobody has caught.

Python ends with 1 after any error. Whoever starts a run again by a script wants to know more:
whether there is no checkpoint to go on from (5), whether none could be written (4).
"""

import atexit
import contextlib
import functools
import logging
import os
import sys
from typing import Any

ERROR_CODE = 1


class _Exit:
    """What is known of the end of this program."""

    def __init__(self) -> None:
        self.code: int | None = None
        previous = sys.excepthook

        def hook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
            self.code = getattr(error, "exit_code", ERROR_CODE)
            previous(kind, error, trace)

        sys.excepthook = hook
        atexit.register(self.leave)

    def leave(self) -> None:
        """Ends the program now, where its code is another one than Python's."""
        if self.code in (None, ERROR_CODE):
            return
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(self.code)


@functools.cache
def watch_exit() -> _Exit:
    """Lets this program end with the code of an error that nobody catches; once is enough."""
    return _Exit()


def exit_code() -> int:
    """Returns the code of the error that nobody has caught, by default 1."""
    code = watch_exit().code
    return ERROR_CODE if code is None else code
