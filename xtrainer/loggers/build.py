"""Which tools does a run have, and where do they write? Checked before anything is written."""

import os
import re
import stat
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from xtrainer.config import Config
from xtrainer.errors import ConfigError
from xtrainer.loggers.base import LoggerTool, LoggerToolConfig, MultiLogger, NullLogger
from xtrainer.loggers.buffer import RowBuffer
from xtrainer.loggers.console import CommandLog, ConsoleLogger
from xtrainer.loggers.file import FileLoggerConfig
from xtrainer.loggers.guarded import GuardedTool
from xtrainer.loggers.queued import QueuedTool
from xtrainer.loggers.tensorboard import TensorBoardLoggerConfig

_WRITTEN = re.compile(r"(config\.json|metrics.*\.(jsonl|csv)|.*\.log)(\.tmp)?")
_NAME = re.compile(r"(?!\.)[A-Za-z0-9_.-]{1,64}")
_NAME_RULE = "1 to 64 of the characters A-Z a-z 0-9 _ . - without a leading dot"


@dataclass(frozen=True, kw_only=True)
class LoggerConfig(Config):
    """Where metrics go, and how often."""

    log_every_n_steps: int = 50
    """Training steps per logged row."""

    log_path: str | None = None
    """The run folder, ``~`` allowed; None: nothing is written."""

    run_name: str | None = None
    """A folder inside ``log_path`` that becomes the run folder."""

    log_tools: list[LoggerToolConfig] = field(
        default_factory=lambda: [FileLoggerConfig(), TensorBoardLoggerConfig()]
    )
    """Who is told beside the console, in this order."""

    console: bool = True
    """Show messages on stdout. Without it they are in the text log alone, and where the program has
    set up Python's ``logging`` to show them."""

    console_interval_s: float = 0.1
    """Seconds between two rows of training on the console and in the text log, at the least; of
    those that come sooner only the newest is shown. The other tools are told of every row."""

    write_interval_s: float = 0.1
    """Rows of training that come sooner after the last are kept and handed to the tools together,
    with the first that does not, a row of another set, at the end and before each checkpoint. A
    process that is killed loses them. 0: each at once."""

    on_tool_error: Literal["disable", "raise"] = "disable"
    """What an error of a tool does once it is open. ``disable``: it is told, what is logged is kept
    for a while and the tool is tried again, at last switched off; training goes on. ``raise``: it
    ends training."""

    tool_retries: int = 5
    """How often a tool that has failed is tried again, after 1 s, 2 s, 4 s and so on, before it is
    switched off."""

    cmd_logging_name: str = "output"
    """Each process's messages go to ``<run folder>/<this>_<process>.log``."""

    def problems(self) -> list[str]:
        """Returns a sentence for each value that cannot work."""
        problems = []
        if self.log_every_n_steps < 1:
            problems.append(
                f"log_every_n_steps: found {self.log_every_n_steps}, "
                "expected a number of steps >= 1."
            )
        for name in ("console_interval_s", "write_interval_s"):
            if getattr(self, name) < 0:
                problems.append(f"{name}: found {getattr(self, name)}, expected seconds >= 0.")
        if self.on_tool_error not in ("disable", "raise"):
            problems.append(
                f"on_tool_error: found {self.on_tool_error!r}, expected 'disable' or 'raise'."
            )
        if self.tool_retries < 0:
            problems.append(f"tool_retries: found {self.tool_retries}, expected a number >= 0.")
        if self.log_path is not None and not self.log_path.strip():
            problems.append(
                f"log_path: found {self.log_path!r}, expected a folder. "
                "Give one, or None to write nothing."
            )
        for name in ("run_name", "cmd_logging_name"):
            value = getattr(self, name)
            if value is not None and not _NAME.fullmatch(value):
                problems.append(f"{name}: found {value!r}, expected {_NAME_RULE}.")
        if self.run_name is not None and self.log_path is None:
            problems.append(
                f"run_name: found {self.run_name!r} without a log_path. Set log_path, the folder "
                "that the run's folder is made in."
            )
        return problems


def run_folder(config: LoggerConfig | None) -> Path | None:
    """Returns the absolute path of the run folder, None where nothing is written.

    Example:
        >>> run_folder(LoggerConfig(log_path="/tmp/runs", run_name="a")).name
        'a'
    """
    if config is None or config.log_path is None:
        return None
    path = Path(config.log_path).expanduser()
    return (path if config.run_name is None else path / config.run_name).resolve()


def prepare_run_folder(path: Path) -> None:
    """Makes sure that a run folder can be written, by writing there; leaves the disk as it was.

    Raises:
        ConfigError: If the path or one above it is a file, or nothing can be written there.
    """
    path = path.expanduser().absolute()
    above = [path, *path.parents]
    existing = next(folder for folder in above if os.path.lexists(folder))
    if not existing.is_dir():
        what = "a file" if existing.is_file() else "no folder"
        raise ConfigError(
            f"log_path: found {str(existing)!r}, which is {what}; expected a folder to write the "
            "run to, or a path where one can be made. Choose another log_path or move the file."
        )
    made: list[Path] = []
    try:
        for folder in reversed(above[: above.index(existing)]):
            folder.mkdir()
            made.append(folder)
        with tempfile.NamedTemporaryFile(dir=path, prefix=".probe-") as file:
            file.write(b"xtrainer")
            file.flush()
    except OSError as error:
        raise ConfigError(
            f"log_path: found {str(path)!r}, where nothing can be written "
            f"({error.strerror or error}); expected a folder that this user may write to. "
            "Choose another log_path, or None to write nothing."
        ) from error
    finally:
        for folder in reversed(made):
            _remove_if_empty(folder)


def check_entries(folder: Path) -> None:
    """Makes sure that nothing in a run folder leads out of it; one that is not there is fine.

    Raises:
        ConfigError: For a link to another place, and for what is neither file nor folder: a run
            that goes on in the folder would write, and remove, what lies there. For a folder where
            a file is to be written.
    """
    try:
        entries = list(os.scandir(folder))
    except OSError:  # tried out by prepare_run_folder
        return
    for entry in entries:
        mode = entry.stat(follow_symlinks=False).st_mode
        if stat.S_ISDIR(mode) and _WRITTEN.fullmatch(entry.name):
            raise ConfigError(
                f"log_path: found {entry.path!r}, which is a folder; expected a file, or nothing. "
                "Move it away, or choose another log_path."
            )
        leads_out = stat.S_ISLNK(mode) and folder not in Path(os.path.realpath(entry)).parents
        if leads_out or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)):
            what = "a link to another place" if leads_out else "neither a file nor a folder"
            raise ConfigError(
                f"log_path: found {entry.path!r}, which is {what}; expected a run folder with "
                "nothing of the kind in it. Remove it; a callback's own log_path may be anywhere."
            )


def build_loggers(config: LoggerConfig | None, *, is_main: bool, process_index: int) -> LoggerTool:
    """Returns the loggers of this process: all of them on the main one, its messages elsewhere.

    The run folder is tried out first, and nothing is left there: files are made with the first
    row, or by ``open()``.

    Raises:
        ConfigError: For a bad config or a run folder that cannot be written.
        MissingDependencyError: If a tool needs a package that is not installed.

    Example:
        >>> build_loggers(None, is_main=True, process_index=0).log_text("note", "to nobody", 1)
    """
    if config is None:
        return NullLogger()
    problems = config.problems()
    if problems:
        raise ConfigError(problems)
    folder = run_folder(config)
    if folder is not None:
        check_entries(folder)
    if folder is not None and is_main:  # processes would remove each other's probes
        prepare_run_folder(folder)
    tools: list[LoggerTool] = []
    if folder is not None:
        tools.append(_guarded(CommandLog(folder, config.cmd_logging_name, process_index), config))
    if is_main:
        tools.append(_guarded(ConsoleLogger(config.console_interval_s, config.console), config))
        made = [_guarded(tool.create(folder), config) for tool in config.log_tools]
        tools += [RowBuffer(tool, config.write_interval_s) for tool in made]
    return MultiLogger(tools)


def _guarded(tool: LoggerTool, config: LoggerConfig) -> LoggerTool:
    """Returns a tool that cannot end the run, and that nobody waits for where it is remote."""
    is_remote = tool.is_remote
    if config.on_tool_error == "disable":
        tool = GuardedTool(tool, config.tool_retries)
    return QueuedTool(tool) if is_remote else tool


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:  # another process has begun to use it
        pass
