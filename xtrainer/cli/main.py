"""Which sub-command was asked for? The console entry point."""

import argparse
import sys
from collections.abc import Sequence

from xtrainer.cli import drill, plan, replay, report, verify_resume
from xtrainer.cli.experiment import UsageError
from xtrainer.errors import MissingDependencyError

OVERRIDE = "--config."


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the sub-command and returns the exit code.

    Args:
        arguments: Without the name of the program; the process's own where None.

    Returns:
        0 where all is well, 1 where what was asked for cannot be, 2 where the command line cannot
        be followed.

    Example:
        >>> main(["plan", "experiments/nothing.py"])
        2
    """
    parser = argparse.ArgumentParser(
        prog="xtrainer", description="Trains Flax models.", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    plan.add_parser(commands)
    verify_resume.add_parser(commands)
    drill.add_parser(commands)
    replay.add_parser(commands)
    report.add_parser(commands)
    try:
        options, rest = parser.parse_known_args(arguments)
        strange = [argument for argument in rest if not argument.startswith(OVERRIDE)]
        if strange:
            parser.error(
                f"found {strange[0]!r}, which is no option of {options.command}; settings of the "
                f"experiment are given as {OVERRIDE}PATH=VALUE"
            )
    except SystemExit as end:  # argparse has said why, or has shown the help
        return int(end.code or 0)
    try:
        return options.run(options, rest)
    except (UsageError, MissingDependencyError) as error:
        print(f"xtrainer {options.command}: {error}", file=sys.stderr)
        return 2
