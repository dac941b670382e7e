"""What do the sub-commands have in common? How they are described, and refuse a command line."""

import argparse
import textwrap
from typing import Any

from xtrainer.errors import XTrainerError

SETTING = "--config."
"""How an argument begins that changes a setting of the experiment."""

_HELP_WIDTH = 100

SUMMARIES = {
    "train": "train what an experiment file describes",
    "evaluate": "metrics of a run's checkpoint on one set of its data",
    "list": "the runs below a folder, as a table",
    "inspect": "what a run or a checkpoint holds, and whether it is whole",
    "diff": "in what two runs differ: config, versions, code, metrics",
    "report": "one file of HTML about a run, or several",
    "plan": "what a run will need, before it is run",
    "replay": "where in a refused step the first NaN or Inf appears",
    "verify-resume": "whether a run that is killed and goes on ends the same",
    "drill": "what a run survives: kills, NaN, full disks and more",
    "launch": "one run of several processes, here or under SLURM",
    "completion": "what a shell needs to complete this command",
}
"""What each sub-command is for, in the order of the help."""


class UsageError(XTrainerError, ValueError):
    """A command line that cannot be followed."""


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Fits text to the terminal, and leaves examples as they are."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)

    def add_argument(self, action: argparse.Action) -> None:
        """Leaves room for the names of sub-commands, whose indentation argparse forgets."""
        super().add_argument(action)
        if isinstance(action.choices, dict):
            self._action_max_length += 2

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        width = min(width, _HELP_WIDTH)
        parts = [part.strip("\n") for part in text.split("\n\n")]
        is_example = ["\n  " in part for part in parts]
        filled = [
            part if raw else textwrap.fill(part, width, break_on_hyphens=False)
            for part, raw in zip(parts, is_example, strict=True)
        ]
        return "\n\n".join(filled)


class Parser(argparse.ArgumentParser):
    """A parser that can be asked for its arguments."""

    def option_names(self) -> list[str]:
        """Returns the long names of all options.

        Example:
            >>> Parser(prog="x").option_names()
            ['--help']
        """
        return [name for name in self._option_string_actions if name.startswith("--")]

    def arguments(self) -> list[argparse.Action]:
        """Returns all options and positional arguments."""
        return list(self._actions)


def sub_parser(
    commands: Any, name: str, description: str, epilog: str, takes_settings: bool = False
) -> Parser:
    """Adds a sub-command to those of a parser and returns its own parser.

    Args:
        commands: What ``ArgumentParser.add_subparsers`` returned.
        name: One of ``SUMMARIES``.
        description: One or two sentences.
        epilog: Examples and exit codes, shown as they are.
        takes_settings: Whether ``--config.PATH=VALUE`` is understood.
    """
    if takes_settings:
        description += f" {SETTING}PATH=VALUE changes a setting of the experiment."
    parser = commands.add_parser(
        name,
        help=SUMMARIES[name],
        description=description,
        epilog=epilog,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    if takes_settings:
        parser.set_defaults(prefix=SETTING)
    return parser


def whole(text: str) -> int:
    """Returns what an option gives as a number of steps or the like.

    Raises:
        ArgumentTypeError: If it is no whole number, or more than any step.

    Example:
        >>> whole("12")
        12
    """
    from xtrainer.counts import MAX_COUNT  # NumPy, which the help does without

    try:
        number = int(text)
    except ValueError:
        number = MAX_COUNT + 1
    if number > MAX_COUNT:
        raise argparse.ArgumentTypeError(f"found {text!r:.40}, expected a number <= {MAX_COUNT}")
    return number
