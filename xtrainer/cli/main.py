"""Which sub-command was asked for? The console entry point, which loads that one alone."""

import contextlib
import importlib.metadata
import os
import sys
from collections.abc import Collection, Sequence
from typing import Any

from etils import epy

from xtrainer.cli.usage import SETTING, SUMMARIES, HelpFormatter, Parser, UsageError
from xtrainer.errors import ConfigError, MissingDependencyError, XTrainerError, did_you_mean

# Each is imported when it is asked for: the help takes no second for JAX.
with epy.lazy_imports():
    from xtrainer.cli import (
        completion,
        diff,
        drill,
        evaluate,
        inspect,
        launch,
        list_runs,
        plan,
        replay,
        report,
        train,
        verify_resume,
    )

_MODULES: dict[str, Any] = {
    "train": train,
    "evaluate": evaluate,
    "list": list_runs,
    "inspect": inspect,
    "diff": diff,
    "report": report,
    "plan": plan,
    "replay": replay,
    "verify-resume": verify_resume,
    "drill": drill,
    "launch": launch,
    "completion": completion,
}
_CLOSED_PIPE, _INTERRUPTED = 141, 130
_EPILOG = """\
examples:
  xtrainer train experiments/byte_lm.py --config.num_train_steps=100
  xtrainer COMMAND --help                   options, examples and exit codes of a sub-command

exit codes: 0 all is well; 1 what was asked for cannot be, or two things differ; 2 the command
line or the config cannot be followed; 130 Ctrl-C. `train` ends with the code of its run."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the sub-command and returns the exit code.

    Args:
        arguments: Without the name of the program; the process's own where None.

    Returns:
        0 where all is well, 1 where what was asked for cannot be, 2 where the command line cannot
        be followed, 130 after Ctrl-C, 141 where nobody reads the output any more.

    Example:
        >>> main(["plan", "experiments/nothing.py"])
        2
    """
    try:
        code = _follow(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()  # here it can still be told that nobody reads it
        return code
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError):  # no file behind it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _CLOSED_PIPE
    except KeyboardInterrupt:
        print("xtrainer: interrupted", file=sys.stderr)
        return _INTERRUPTED


def build_parser(loaded: Collection[str] = tuple(_MODULES)) -> tuple[Parser, dict[str, Parser]]:
    """Returns the parser of the program, and those of its sub-commands.

    Args:
        loaded: Sub-commands whose options are needed; the others are only named.
    """
    parser = Parser(
        prog="xtrainer",
        description="Trains Flax models, and looks after their runs.",
        epilog=_EPILOG,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"xtrainer {_version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in SUMMARIES:
        if name in loaded:
            _MODULES[name].add_parser(commands)
        elif name in _MODULES:
            commands.add_parser(name, help=SUMMARIES[name], add_help=False)
    return parser, commands.choices


def _follow(arguments: list[str]) -> int:
    name = next((one for one in arguments if not one.startswith("-")), None)
    if not arguments:
        build_parser(())[0].print_help()
        return 2
    if name is not None and name not in _MODULES:
        return _refuse(f"found {name!r}, which is no command. {did_you_mean(name, _MODULES)}")
    parser, parsers = build_parser(() if name is None else (name,))
    behind: list[str] = []
    if name == "launch" and "--" in arguments:
        split = arguments.index("--")
        arguments, behind = arguments[:split], arguments[split + 1 :]
    try:
        options, rest = parser.parse_known_args(arguments)
        settings = _settings(options, rest, parsers[options.command])
    except SystemExit as end:  # argparse has said why, or has shown the help
        return int(end.code or 0)
    options.behind, options.build_parser = behind, build_parser
    try:
        return options.run(options, settings)
    except (UsageError, ConfigError, MissingDependencyError) as error:
        return _refuse(str(error), options.command)
    except XTrainerError as error:
        _refuse("\n".join([str(error), *getattr(error, "__notes__", ())]), options.command)
        return error.exit_code


def _settings(options: Any, rest: list[str], parser: Parser) -> list[str]:
    """Returns the settings among what no option has taken.

    Raises:
        SystemExit: If there is something else; it was told.
    """
    prefix = getattr(options, "prefix", None)  # of the settings that it takes
    for argument in rest:
        if prefix and argument.startswith(prefix):
            continue
        given = argument.split("=", 1)[0]
        message = f"found {given!r}, which is no option of {options.command}"
        if prefix == SETTING:
            message += f"; settings of the experiment are given as {SETTING}PATH=VALUE"
        if argument.startswith(SETTING):
            message += ": it takes no settings of an experiment"
        elif argument.startswith("-"):
            message += f". {did_you_mean(given, parser.option_names())}"
        parser.error(message)
    return rest


def _refuse(message: str, command: str = "") -> int:
    print(f"{f'xtrainer {command}'.rstrip()}: {message}", file=sys.stderr)
    return 2


def _version() -> str:
    try:
        return importlib.metadata.version("xtrainer")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        return "(version unknown: not installed)"
