"""The errors xtrainer raises on purpose: what was found, what was expected, what to do."""

import difflib
import importlib
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import ClassVar


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
        ) from error
