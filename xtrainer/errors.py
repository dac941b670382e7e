"""The errors xtrainer raises on purpose: what was found, what was expected, what to do."""

import difflib
import functools
import importlib
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import ModuleType, TracebackType
from typing import ClassVar, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_LOG = logging.getLogger(__name__)
_LIBRARIES = {"absl", "chex", "etils", "flax", "jax", "jaxlib", "ml_collections", "numpy", "optax"}
_LIBRARIES |= {"orbax", *sys.stdlib_module_names}
_TAUGHT = "xtrainer_taught"
"""The attribute of an error that :func:`teach` has been told of."""


class XTrainerError(Exception):
    """Base of every deliberate error, so that a caller can catch all of them."""

    exit_code: ClassVar[int] = 1
    """What a program ends with where nobody catches the error, see ``launch/exits.py``."""


class ConfigError(XTrainerError, ValueError):
    """One or more mistakes in a configuration, all reported together.

    Args:
        problems: One sentence per mistake; each names the field by its dotted path.
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems: tuple[str, ...] = (
            (problems,) if isinstance(problems, str) else tuple(problems)
        )
        if len(self.problems) == 1:
            message = self.problems[0]
        else:
            lines = "\n".join(f"  - {problem}" for problem in self.problems)
            message = f"{len(self.problems)} mistakes in the configuration:\n{lines}"
        super().__init__(message)


class MeshError(XTrainerError, ValueError):
    """Mesh sizes, axes or devices that do not fit together."""


class DeviceError(XTrainerError, RuntimeError):
    """Devices that JAX cannot start."""


class BatchError(XTrainerError, ValueError):
    """A batch whose leaves disagree, or whose shape the compiled step cannot take."""


class LossError(XTrainerError, ValueError):
    """A loss function that returned something other than the documented forms."""


class PredictionError(XTrainerError, ValueError):
    """Predictions that are not one row for each row of a batch, or do not fit together."""


class StepError(XTrainerError, ValueError):
    """Arguments that a compiled step cannot take."""


class LoaderError(XTrainerError, ValueError):
    """A loader that is empty, exhausted or cannot be positioned."""


class LoaderTimeoutError(LoaderError, TimeoutError):
    """A loader that has given no batch for too long."""

    exit_code = 124


class MetricError(XTrainerError, KeyError):
    """A metric that is unknown or cannot be logged."""

    def __str__(self) -> str:  # KeyError would show the message's repr
        return str(self.args[0]) if self.args else ""


class CheckpointError(XTrainerError, ValueError):
    """A checkpoint that cannot be written, or does not fit what it is restored into."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """No usable checkpoint where one was expected."""


class CheckpointCorruptError(CheckpointError):
    """A checkpoint that is damaged.

    Args:
        message: What is wrong with it.
        step: Its step.
    """

    def __init__(self, message: str, step: int | None = None) -> None:
        super().__init__(message)
        self.step = step


class NewerFormatError(CheckpointError):
    """A checkpoint that only a newer xtrainer can read."""


class CheckpointWriteError(CheckpointError, OSError):
    """A checkpoint that could not be written."""

    exit_code = 4


class NewerAttemptError(CheckpointWriteError):
    """A process that may not save any more: another start of its run has taken its place."""


class NoUsableCheckpointError(CheckpointError):
    """There are checkpoints, and none of them can be used."""

    exit_code = 5


class FolderInUseError(XTrainerError, RuntimeError):
    """Another run writes to the folder."""


class PeerError(XTrainerError, RuntimeError):
    """Another process of the run has failed, or does not answer."""


class HangError(XTrainerError, TimeoutError):
    """A run in which nothing has moved on for longer than it may."""

    exit_code = 124


class MissingDependencyError(XTrainerError, ImportError):
    """An optional package that a feature needs is not installed."""


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """Returns the end of an error message: the nearest of ``options``, then all of them.

    Example:
        >>> did_you_mean("adanw", ["adam", "adamw", "sgd"])
        "Did you mean 'adamw'? Known names: adam, adamw, sgd."
    """
    names = sorted({str(option) for option in options})
    close = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return f"{hint}Known names: {', '.join(names) if names else '(none)'}."


def require(module: str, extra: str) -> ModuleType:
    """Imports an optional package, or says how to install it.

    Args:
        module: Name of the module to import.
        extra: Name of the xtrainer extra that brings it.

    Raises:
        MissingDependencyError: If the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"The package {module!r} is needed here and could not be imported ({error}). "
            f'Install it with: pip install "xtrainer[{extra}]"'
        ) from (None if _is_absent(error, module) else error)


def _is_absent(error: ImportError, module: str) -> bool:
    """Says whether the package itself is not there, rather than something that it imports."""
    absent = isinstance(error, ModuleNotFoundError)
    return absent and error.name in (module, module.split(".")[0])


def teach(error: Exception, *sentences: str) -> None:
    """Adds to an error of somebody else what was being done, and what helps; once."""
    if not getattr(error, _TAUGHT, False):
        error.add_note(" ".join(sentence for sentence in sentences if sentence))
        setattr(error, _TAUGHT, True)


def readable(call: Callable[P, R]) -> Callable[P, R]:
    """Lets an error leave a function as its caller can read it.

    Of its traceback the lines of the caller's own files are left. The frames of JAX, Flax, Optax
    and Orbax go, and so do xtrainer's where the error is a deliberate one or comes from the
    caller's code; so do causes in which there is nothing else. An error that is neither, a fault of
    xtrainer, keeps everything. ``JAX_TRACEBACK_FILTERING=off`` keeps everything too, and the log
    has it at the level DEBUG.
    """

    @functools.wraps(call)
    def door(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return call(*args, **kwargs)
        except Exception as error:
            for_reader(error)
            raise

    return door


def for_reader(error: Exception) -> None:
    """Takes out of an error what its reader has not written, see :func:`readable`."""
    jax = sys.modules.get("jax")
    if jax is not None and jax.config.jax_traceback_filtering == "off":
        return
    _LOG.debug("An error, with all frames:", exc_info=error)
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        one = _trim(one)


def _trim(error: BaseException) -> BaseException | None:
    """Leaves out frames and notes of libraries; returns the error before it, if that is shown."""
    frames = list(_frames(error))
    own = [frame for frame in frames if _is_own(frame)]
    known = [frame for frame in frames if _origin(frame) not in _LIBRARIES]
    deliberate = isinstance(error, XTrainerError) or getattr(error, _TAUGHT, False)
    if not deliberate and not (own and own[-1] is known[-1]):
        return None
    error.__traceback__ = _chain(own)
    if notes := getattr(error, "__notes__", None):
        notes[:] = [note for note in notes if "JAX has removed its internal frames" not in note]
    before = error.__cause__
    if before is None and not error.__suppress_context__:
        before = error.__context__
    if before is None or any(_is_own(frame) for frame in _frames(before)):
        return before
    error.__cause__ = None
    error.__suppress_context__ = True
    return None


def _frames(error: BaseException) -> Iterator[TracebackType]:
    frame = error.__traceback__
    while frame is not None:
        yield frame
        frame = frame.tb_next


def _is_own(frame: TracebackType) -> bool:
    return _origin(frame) not in (*_LIBRARIES, "xtrainer")


def _origin(frame: TracebackType) -> str:
    """Returns the package that the code of a frame belongs to."""
    return str(frame.tb_frame.f_globals.get("__name__", "")).split(".")[0]


def _chain(frames: Sequence[TracebackType]) -> TracebackType | None:
    chain: TracebackType | None = None
    for one in reversed(frames):
        chain = TracebackType(chain, one.tb_frame, one.tb_lasti, one.tb_lineno)
    return chain
