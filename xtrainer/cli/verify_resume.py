"""``xtrainer verify-resume``: does this experiment end the same if it is killed on the way?"""

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from xtrainer.cli.runner import RunFailed, Runner, runner_of
from xtrainer.cli.usage import UsageError, sub_parser, whole
from xtrainer.testing import Difference, Fault, Journal, choose_kills, compare

_EXAMPLES = """\
examples:
  xtrainer verify-resume experiments/byte_lm.py --save-every 20 --config.num_train_steps=60
  xtrainer verify-resume experiments/digits.py --at 7 8 40 --config.num_epochs=3

exit codes: 0 both runs are the same; 1 they differ, or one has failed; 2 the command line cannot be
followed."""


def add_parser(commands: Any) -> None:
    """Adds the sub-command to those of a parser."""
    parser = sub_parser(
        commands,
        "verify-resume",
        "Runs an experiment as it is, then again with kills, and compares both.",
        _EXAMPLES,
        takes_settings=True,
    )
    add = parser.add_argument
    add("experiment", help="a Python file with get_config() and run(config)")
    add(
        "--kills",
        type=whole,
        default=3,
        metavar="N",
        help="kills at random steps (default: 3)",
    )
    add("--at", type=whole, nargs="+", metavar="STEP", help="kill after these steps instead")
    add("--save-every", type=whole, default=-1, metavar="N", help="steps between checkpoints")
    add("--seed", type=int, default=0, help="of the random steps")
    add("--keep", type=Path, metavar="FOLDER", help="keep both runs there")
    add("--limit-s", type=float, default=3600.0, help="seconds that one process may take")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Runs, kills, compares and prints; returns the exit code.

    Raises:
        UsageError: If the command line cannot be followed.
    """
    if options.kills < 1 or any(step < 1 for step in options.at or ()):
        raise UsageError("found a number below 1, expected at least one kill, after a step >= 1.")
    if options.save_every != -1 and options.save_every < 1:
        raise UsageError(f"--save-every: found {options.save_every}, expected a number >= 1.")
    settings = (options.experiment, overrides, options.keep, options.save_every, options.limit_s)
    with runner_of("verify-resume", *settings) as runner:
        try:
            return _verify(runner, options)
        except RunFailed as error:
            print(f"xtrainer verify-resume: {error}", file=sys.stderr)
            return 1


def _verify(runner: Runner, options: argparse.Namespace) -> int:
    console = Console(highlight=False)
    began = time.monotonic()
    reference = runner.complete("whole").journal
    if not reference.steps:
        raise RunFailed("the experiment has taken no step, so there is nothing to compare.")
    kills = sorted(options.at) if options.at else []
    kills = kills or choose_kills(max(reference.steps), options.kills, options.seed)
    parts = [_kill(runner, step) for step in kills]
    parts.append(runner.complete("killed").journal)
    differences = compare(reference, parts, (runner.folder / "whole", runner.folder / "killed"))
    _print(console, kills, parts, differences, len(reference.steps), time.monotonic() - began)
    return 1 if differences else 0


def _kill(runner: Runner, step: int) -> Journal:
    ended = runner.start("killed", Fault(kind="kill", at=step))
    if ended.code == 0:
        raise RunFailed(f"the run ended before step {step}, so it could not be killed.")
    if ended.code != -signal.SIGKILL:
        raise RunFailed(runner.describe(ended))
    return ended.journal


def _print(
    console: Console,
    kills: Sequence[int],
    parts: Sequence[Journal],
    differences: Sequence[Difference],
    steps: int,
    seconds: float,
) -> None:
    table = Table("killed after step", "went on from step", "steps lost")
    for kill, part in zip(kills, parts[1:], strict=True):
        resumed = part.start or 0
        table.add_row(str(kill), str(resumed), str(max(kill - resumed, 0)))
    console.print(table)
    end = f"({steps} steps, {len(kills)} kills, {seconds:.0f} s)"
    if not differences:
        text = "The same: state after each step and at the end, data, rows of metrics."
        console.print(Text(f"{text} {end}", style="bold green"))
        return
    console.print(Text(f"Not the same {end}. The first differences:", style="bold red"))
    for difference in differences:
        console.print(Text(f"- {difference}"))
