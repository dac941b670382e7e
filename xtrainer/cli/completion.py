"""``xtrainer completion``: what does a shell need to complete this command?"""

import argparse
from collections.abc import Sequence
from typing import Any

from xtrainer.cli.usage import Parser, sub_parser
from xtrainer.errors import require

_EXAMPLES = """\
examples:
  xtrainer completion bash > ~/.local/share/bash-completion/completions/xtrainer
  xtrainer completion zsh > ~/.zfunc/_xtrainer      # with fpath+=~/.zfunc before compinit

Completed are sub-commands, options, their choices, files and folders. Needs the extra "completion".

exit codes: 0 done; 2 the command line cannot be followed, or the extra is missing."""
_FILES = ("experiment", "output", "slurm")
_FOLDERS = ("folder", "runs", "a", "b", "keep")


def add_parser(commands: Any) -> None:
    """Adds the sub-command to those of a parser."""
    parser = sub_parser(
        commands, "completion", "Prints a script for the completion of a shell.", _EXAMPLES
    )
    parser.add_argument("shell", choices=("bash", "zsh"), help="which shell")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Prints the script; returns the exit code.

    Raises:
        MissingDependencyError: If ``shtab`` is not installed.
    """
    shtab = require("shtab", "completion")
    parser, commands = options.build_parser()
    for command in commands.values():
        _mark(command, shtab)
    print(shtab.complete(parser, options.shell))
    return 0


def _mark(parser: Parser, shtab: Any) -> None:
    """Says which arguments are files, and which folders."""
    for action in parser.arguments():
        if action.dest in _FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.dest in _FOLDERS:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
