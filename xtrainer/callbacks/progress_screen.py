"""How do a few lines stay at the foot of a terminal, below all that is printed meanwhile?

Rich's own live display hides the cursor, which a program that is killed cannot show again, waits at
its end for a terminal that takes nothing, and knows nothing of log handlers that were made before
it. Here the cursor stays visible and rests above the lines, at the beginning of an empty one:
whatever is written then by whomever takes the place of the lines, and they move down with the next
drawing. Nothing depends on where they were, so that a terminal may change its size at any time.
"""

import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO, cast

_ERASE_LINE, _ERASE_BELOW = "\x1b[K", "\x1b[J"
_NO_WRAP, _WRAP = "\x1b[?7l", "\x1b[?7h"
_PATIENCE_S = 5.0


class Screen:
    """Lines at the foot of a terminal.

    Args:
        stream: The terminal they are drawn on.
        clock: Seconds of any origin.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self.stream, self._clock = stream, clock
        self._lock = threading.RLock()  # a signal may come, and be told, while a line is written
        self._lines: Sequence[str] = ()
        self._shown = self._is_open = self._has_left = False
        self._open_line_since: float | None = None

    @property
    def size(self) -> os.terminal_size:
        """Columns and rows of the terminal as it is now."""
        try:
            size = os.get_terminal_size(self.stream.fileno())
        except (AttributeError, OSError, ValueError):  # it only says that it is a terminal
            size = shutil.get_terminal_size()
        return size if size.columns and size.lines else os.terminal_size((80, 24))

    def open(self) -> None:
        """Lets all that is printed and logged from here on pass through this screen."""
        self._is_open = True
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if _is_terminal(stream) and not isinstance(stream, _Passage):
                passage = cast(TextIO, _Passage(self, stream))
                setattr(sys, name, passage)
                _swap(stream, passage)

    def draw(self, lines: Sequence[str]) -> None:
        """Shows lines, in place of those before; none is to be wider than the terminal."""
        with self._lock:
            self._lines = lines
            if lines:
                self._show()
            else:
                self._hide()

    def print(self, stream: TextIO, text: str) -> int:
        """Writes a text to a stream of this terminal, above the lines."""
        with self._lock:
            if not self._is_open:
                return stream.write(text)
            self._hide()
            stream.write(text)
            stream.flush()
            if text:
                at_end = text.endswith("\n")
                self._open_line_since = None if at_end else self._clock()
            self._show()
        return len(text)

    def leave(self) -> None:
        """Takes the lines away for good, for a program that ends at once."""
        with self._lock:
            self._hide()
            self._has_left = True

    def close(self) -> None:
        """Gives the streams back; waits for nobody."""
        self._is_open = False
        for name in ("stdout", "stderr"):
            passage = getattr(sys, name)
            if isinstance(passage, _Passage) and passage.screen is self:
                setattr(sys, name, passage.stream)
                _swap(cast(TextIO, passage), passage.stream)

    def _show(self) -> None:
        since = self._open_line_since
        if self._has_left or not self._lines:
            return
        if since is not None and self._clock() - since < _PATIENCE_S:
            return  # somebody has not ended a line: a bar that draws itself, or a question
        begin = "\n" if since is not None else ""
        self._open_line_since = None
        rows = [f"{line}{_ERASE_LINE}" for line in ("", *self._lines)]
        up = f"\x1b[{len(self._lines)}A"
        self._write(f"{begin}\r{_NO_WRAP}" + "\n".join(rows) + f"{_ERASE_BELOW}{_WRAP}{up}\r")
        self._shown = True

    def _hide(self) -> None:
        if self._shown:
            self._write(f"\r{_ERASE_BELOW}")
            self._shown = False

    def _write(self, text: str) -> None:
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        self.stream.write(text.encode(encoding, "replace").decode(encoding))
        self.stream.flush()


class _Passage:
    """Stands for a stream while a screen is open; all but writing is the stream's own."""

    def __init__(self, screen: Screen, stream: TextIO) -> None:
        self.screen, self.stream = screen, stream

    def write(self, text: str) -> int:
        return self.screen.print(self.stream, text)

    def writelines(self, lines: Sequence[str]) -> None:
        self.write("".join(lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def terminal() -> TextIO | None:
    """Returns the stream of a terminal that can be drawn on; None where there is none."""
    if os.environ.get("TERM") == "dumb":
        return None
    for stream in (sys.stderr, sys.stdout):
        if isinstance(stream, _Passage):
            return None  # another run draws on it
        if _is_terminal(stream):
            return stream
    return None


def _is_terminal(stream: Any) -> bool:
    try:
        return stream is not None and stream.isatty()
    except (AttributeError, ValueError):  # it is closed
        return False


def _swap(old: TextIO, new: TextIO) -> None:
    """Lets log handlers that write to a stream write to another one."""
    for handler in _handlers():
        if isinstance(handler, logging.StreamHandler) and handler.stream is old:
            handler.stream = new


def _handlers() -> Iterator[logging.Handler]:
    root = logging.getLogger()
    loggers = [root, *list(root.manager.loggerDict.values())]
    for logger in loggers:
        yield from list(getattr(logger, "handlers", ()))
