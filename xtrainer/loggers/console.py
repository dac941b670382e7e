"""What does a person at the terminal see? One line a row, and a file of each process's messages."""

import contextlib
import logging
import math
import sys
import time
from pathlib import Path

from xtrainer.loggers.base import LoggerTool
from xtrainer.types import HostMetrics

PACKAGE_LOGGER = "xtrainer"
LINE_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

_log = logging.getLogger(__name__)


class ConsoleLogger(LoggerTool):
    """Says each row in one line through Python's ``logging``, at INFO.

    While it is open, messages of xtrainer are shown on stdout, unless the program has set up
    logging so that they are shown already.

    Args:
        min_interval_s: Seconds between two rows of training, at the least.
        shows: Whether messages are shown on stdout where nothing else shows them.
    """

    def __init__(self, min_interval_s: float = 0.0, shows: bool = True) -> None:
        self._shows = shows
        self._handler: logging.Handler | None = None
        self._min_interval_s = min_interval_s
        self._said_at = -math.inf
        self._waiting: tuple[HostMetrics, int, str, int] | None = None

    def open(self) -> None:
        """Makes messages visible on stdout where nothing else shows them."""
        if self._shows and self._handler is None and not _is_shown():
            self._handler = _Stdout()
            _attach(self._handler)

    def log_metrics(self, metrics: HostMetrics, step: int, mode: str, epoch: int) -> None:
        """Says one row; one of training that comes too soon waits, and a newer one replaces it."""
        now = time.monotonic()
        if mode == "train" and now - self._said_at < self._min_interval_s:
            self._waiting = (metrics, step, mode, epoch)
            return
        if mode != "train":
            self._say_waiting()
        self._said_at, self._waiting = now, None
        self._say(metrics, step, mode, epoch)

    def _say_waiting(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            self._say(*waiting)

    def _say(self, metrics: HostMetrics, step: int, mode: str, epoch: int) -> None:
        self.open()
        values = [f"{mode}/{key} {value:.4g}" for key, value in metrics.items()]
        _log.info("%s", " | ".join([f"step {step}", f"epoch {epoch}", *values]))

    def log_text(self, key: str, text: str, step: int) -> None:
        """Says a text, under a line with its key."""
        self._say_waiting()
        self.open()
        _log.info("%s at step %d:\n%s", key, step, text)

    def flush(self) -> None:
        """Flushes stdout."""
        if self._handler is not None:
            with contextlib.suppress(OSError, ValueError):  # each message was flushed, or counted
                self._handler.flush()

    def finalize(self, status: str) -> None:
        """Says the last row and leaves Python's logging as it was."""
        self._say_waiting()
        handler, self._handler = self._handler, None
        if handler is not None:
            _detach(handler)


class CommandLog(LoggerTool):
    """Writes xtrainer's messages to ``<folder>/<name>_<process>.log``, after what is there.

    Args:
        folder: The run folder.
        name: First part of the file's name.
        process_index: Number of this process.
    """

    def __init__(self, folder: Path, name: str, process_index: int) -> None:
        self.path = folder / f"{name}_{process_index}.log"
        self._handler: _CommandFile | None = None

    def open(self) -> None:
        """Begins to write messages."""
        if self._handler is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._handler = _CommandFile(self.path, encoding="utf-8", errors="backslashreplace")
            self._handler.setFormatter(logging.Formatter(LINE_FORMAT))
            _attach(self._handler)

    def flush(self) -> None:
        """Flushes the file."""
        if self._handler is not None:
            with contextlib.suppress(OSError, ValueError):  # each message was flushed, or counted
                self._handler.flush()

    def finalize(self, status: str) -> None:
        """Closes the file, and says so where messages are missing in it."""
        handler, self._handler = self._handler, None
        if handler is not None:
            _detach(handler)
            if handler.missing:
                _log.error("%s: %d messages could not be written.", self.path, handler.missing)


def setup_command_log(folder: Path, name: str, process_index: int) -> CommandLog:
    """Returns an open :class:`CommandLog`; its ``finalize`` closes the file."""
    log = CommandLog(folder, name, process_index)
    log.open()
    return log


class _Forgiving(logging.Handler):
    """Says once on stderr that it cannot write, and counts what is missing.

    Python's own way is a traceback on stderr for each message: thousands with a full disk.
    """

    missing = 0

    def handleError(self, record: logging.LogRecord) -> None:
        self.missing += 1
        if self.missing == 1:
            kind, error, _ = sys.exc_info()
            name = "" if kind is None else f"{kind.__name__}: {error}"
            with contextlib.suppress(OSError, ValueError, AttributeError):  # no stderr either
                print(f"Messages cannot be written to {self.target}: {name}", file=sys.stderr)

    @property
    def target(self) -> str:
        return "stdout"

    def close(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().close()


class _Stdout(_Forgiving, logging.StreamHandler):
    """Shows what the gate has not passed on to the program's own handlers."""

    def __init__(self) -> None:
        super().__init__(sys.stdout)

    def format(self, record: logging.LogRecord) -> str:
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        return super().format(record).encode(encoding, "backslashreplace").decode(encoding)

    def filter(self, record: logging.LogRecord) -> bool | logging.LogRecord:
        gate = _find_gate(logging.getLogger(PACKAGE_LOGGER))
        passed_on = gate is not None and gate.passes(record)
        return False if passed_on else super().filter(record)


class _CommandFile(_Forgiving, logging.FileHandler):
    """One of our own files; the class tells them from a user's handlers."""

    @property
    def target(self) -> str:
        return self.baseFilename


class _Gate(logging.Handler):
    """Stands between the package's logger and the root's handlers while ours are attached.

    Our handlers need INFO, which the root logger of most programs does not show. Records travel to
    the root's handlers whatever the root's level is, so without the gate a program that asked for
    warnings only would be given every line (importing Orbax puts a handler on the root).
    """

    def __init__(self, package: logging.Logger) -> None:
        super().__init__()
        self.level_was = package.level
        self.propagate_was = package.propagate
        if package.level == logging.NOTSET:
            package.setLevel(logging.INFO)
        package.propagate = False

    def passes(self, record: logging.LogRecord) -> bool:
        return self.propagate_was and _root_shows(record.levelno, self.level_was)

    def emit(self, record: logging.LogRecord) -> None:
        if self.passes(record):
            logging.getLogger().handle(record)

    def restore(self, package: logging.Logger) -> None:
        package.removeHandler(self)
        if self.level_was == logging.NOTSET and package.level == logging.INFO:
            package.setLevel(logging.NOTSET)
        package.propagate = self.propagate_was


def _root_shows(level: int, package_level: int) -> bool:
    root = logging.getLogger()
    # A level set on the package by the program counts before the root's, as in Python's logging.
    threshold = root.level if package_level == logging.NOTSET else package_level
    return bool(root.handlers) and level >= threshold


def _is_shown() -> bool:
    """Says whether the program itself has seen to it that INFO of this package is shown."""
    package = logging.getLogger(PACKAGE_LOGGER)
    ours = (_CommandFile, _Gate)
    if any(not isinstance(handler, ours) for handler in package.handlers):
        return True
    gate = _find_gate(package)
    level = package.level if gate is None else gate.level_was
    propagate = package.propagate if gate is None else gate.propagate_was
    return propagate and _root_shows(logging.INFO, level)


def _find_gate(package: logging.Logger) -> _Gate | None:
    return next((handler for handler in package.handlers if isinstance(handler, _Gate)), None)


def _attach(handler: logging.Handler) -> None:
    package = logging.getLogger(PACKAGE_LOGGER)
    if _find_gate(package) is None:
        package.addHandler(_Gate(package))
    package.addHandler(handler)


def _detach(handler: logging.Handler) -> None:
    package = logging.getLogger(PACKAGE_LOGGER)
    package.removeHandler(handler)
    handler.close()
    gate = _find_gate(package)
    if gate is not None and not any(
        isinstance(h, _Stdout | _CommandFile) for h in package.handlers
    ):
        gate.restore(package)
