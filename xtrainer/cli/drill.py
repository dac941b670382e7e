"""``xtrainer drill``: what does this experiment survive? Faults are injected, one run for each."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from xtrainer.cli.drills import DRILLS, Outcome, run_drills
from xtrainer.cli.runner import RunFailed, runner_of
from xtrainer.cli.screen import show_bytes
from xtrainer.cli.usage import UsageError, sub_parser, whole

_EXAMPLES = """\
examples:
  xtrainer drill experiments/byte_lm.py --save-every 10 --config.num_train_steps=60
  xtrainer drill experiments/digits.py --kill9 --corrupt --save-every 20 --config.num_epochs=2

Each injection is one or more runs of the whole experiment: give it few steps. exit codes: 0 all was
survived; 1 something was not; 2 the command line cannot be followed."""


def add_parser(commands: Any) -> None:
    """Adds the sub-command to those of a parser."""
    parser = sub_parser(
        commands,
        "drill",
        "Runs an experiment as it is, then again with each injection, and compares.",
        _EXAMPLES,
        takes_settings=True,
    )
    add = parser.add_argument
    add("experiment", help="a Python file with get_config() and run(config)")
    for name, drill in DRILLS.items():
        add(f"--{name}", action="append_const", dest="names", const=name, help=drill.__doc__)
    add("--save-every", type=whole, default=-1, metavar="N", help="steps between checkpoints")
    add("--seed", type=int, default=0, help="of the random steps")
    add("--keep", type=Path, metavar="FOLDER", help="keep all runs there")
    add("--limit-s", type=float, default=3600.0, help="seconds that one process may take")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Injects, compares and prints; returns the exit code.

    Raises:
        UsageError: If the command line cannot be followed.
    """
    if options.save_every != -1 and options.save_every < 1:
        raise UsageError(f"--save-every: found {options.save_every}, expected a number >= 1.")
    names = [name for name in DRILLS if name in (options.names or DRILLS)]
    settings = (options.experiment, overrides, options.keep, options.save_every, options.limit_s)
    began = time.monotonic()
    with runner_of("drill", *settings) as runner:
        try:
            outcomes = run_drills(runner, names, options.seed)
        except RunFailed as error:
            print(f"xtrainer drill: without a fault, {error}", file=sys.stderr)
            return 1
        processes = runner.count
    print_outcomes(Console(highlight=False), outcomes)
    text = f"{len(outcomes)} injections, {processes} processes, {time.monotonic() - began:.0f} s"
    print(f"Seed {options.seed}; {text}.")
    return 1 if any(outcome.problems for outcome in outcomes) else 0


def print_outcomes(console: Console, outcomes: Sequence[Outcome]) -> None:
    """Prints a table of what was survived, and below it all that was not as it should be."""
    table = Table("injection", "what and when", "what happened", "lost", "verdict")
    for outcome in outcomes:
        steps = f"{outcome.lost_steps} steps"
        size = f", {show_bytes(outcome.lost_bytes)}" if outcome.lost_bytes else ""
        good = not outcome.problems
        verdict = Text("the same end", "green") if good else Text("NOT SURVIVED", "bold red")
        happened = Text("\n".join(outcome.happened))
        table.add_row(outcome.name, Text(outcome.injected), happened, steps + size, verdict)
    console.print(table)
    for outcome in outcomes:
        for problem in outcome.problems:
            console.print(Text(f"- {outcome.name}: {problem}"))
