"""``xtrainer verify-resume``: does this experiment end the same if it is killed on the way?"""

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from xtrainer.cli.experiment import UsageError, load_experiment
from xtrainer.testing import Difference, Journal, choose_kills, compare, read_journal

_EXAMPLES = """\
examples:
  xtrainer verify-resume experiments/byte_lm.py --save-every 20 --config.num_train_steps=60
  xtrainer verify-resume experiments/digits.py --at 7 8 40 --config.num_epochs=3

exit codes: 0 both runs are the same; 1 they differ, or one has failed; 2 the command line cannot be
followed."""
_LAST_LINES = 30
_OUTPUT = "output.txt"


class RunFailed(Exception):
    """A run that ended by itself, and badly."""


def add_parser(commands: Any) -> None:
    """Adds the sub-command to those of a parser."""
    parser = commands.add_parser(
        "verify-resume",
        help="whether a run that is killed and goes on ends the same",
        description="Runs an experiment as it is, then again with kills, and compares both.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("experiment", help="a Python file with get_config() and run(config)")
    add("--kills", type=int, default=3, metavar="N", help="kills at random steps (default: 3)")
    add("--at", type=int, nargs="+", metavar="STEP", help="kill after these steps instead")
    add("--save-every", type=int, default=-1, metavar="N", help="steps between checkpoints")
    add("--seed", type=int, default=0, help="of the random steps")
    add("--keep", type=Path, metavar="FOLDER", help="keep both runs there")
    add("--limit-s", type=float, default=3600.0, help="seconds that one process may take")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Runs, kills, compares and prints; returns the exit code.

    Raises:
        UsageError: If the command line cannot be followed.
    """
    experiment = load_experiment(options.experiment)
    if experiment.run is None:
        raise UsageError(f"{experiment.path}: found no function run(config). Add one that trains.")
    if options.kills < 1 or any(step < 1 for step in options.at or ()):
        raise UsageError("found a number below 1, expected at least one kill, after a step >= 1.")
    folder = options.keep or Path(tempfile.mkdtemp(prefix="xtrainer-verify-resume-"))
    folder = folder.expanduser().resolve()
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"--keep: {str(folder)!r} is not empty, expected a new folder.")
    runner = Runner(str(experiment.path), overrides, folder, options.save_every, options.limit_s)
    try:
        return _verify(runner, options)
    except RunFailed as error:
        print(f"xtrainer verify-resume: {error}", file=sys.stderr)
        return 1
    finally:
        if options.keep is None:
            shutil.rmtree(folder, ignore_errors=True)


def _verify(runner: "Runner", options: argparse.Namespace) -> int:
    console = Console(highlight=False)
    began = time.monotonic()
    reference = runner.start("whole", 0)
    if not reference.steps:
        raise RunFailed("the experiment has taken no step, so there is nothing to compare.")
    kills = sorted(options.at) if options.at else []
    kills = kills or choose_kills(max(reference.steps), options.kills, options.seed)
    parts = [runner.start("killed", step) for step in kills]
    parts.append(runner.start("killed", 0))
    differences = compare(reference, parts, (runner.folder / "whole", runner.folder / "killed"))
    _print(console, kills, parts, differences, len(reference.steps), time.monotonic() - began)
    return 1 if differences else 0


class Runner:
    """Starts an experiment in processes.

    Args:
        experiment: The file.
        overrides: Of its config.
        folder: Of both runs and their journals.
        save_every: Steps between checkpoints; -1: as the experiment says.
        limit_s: Seconds that one process may take.
    """

    def __init__(
        self,
        experiment: str,
        overrides: Sequence[str],
        folder: Path,
        save_every: int,
        limit_s: float,
    ) -> None:
        self.experiment, self.overrides = experiment, list(overrides)
        self.folder, self.save_every, self.limit_s = folder, save_every, limit_s
        self.count = 0

    def start(self, name: str, kill_at: int) -> Journal:
        """Runs one process to its end, or to its kill; returns what it noted.

        Raises:
            RunFailed: If it ends otherwise.
        """
        self.count += 1
        journal = self.folder / f"journal-{self.count}.jsonl"
        journal.parent.mkdir(parents=True, exist_ok=True)
        journal.touch()
        command = [sys.executable, "-m", "xtrainer.cli.watched_run", self.experiment]
        command += [str(self.folder / name), str(journal), str(kill_at or -1)]
        command += [str(self.save_every), *self.overrides]
        with open(self.folder / _OUTPUT, "a", encoding="utf-8") as output:
            try:
                code = subprocess.run(
                    command, stdout=output, stderr=output, timeout=self.limit_s, check=False
                ).returncode
            except subprocess.TimeoutExpired:
                raise RunFailed(f"a run took more than {self.limit_s} s.") from None
        if code != (-signal.SIGKILL if kill_at else 0):
            if kill_at and code == 0:
                raise RunFailed(f"the run ended before step {kill_at}, so it could not be killed.")
            lines = (self.folder / _OUTPUT).read_text(encoding="utf-8", errors="replace")
            last = "\n".join(lines.splitlines()[-_LAST_LINES:])
            raise RunFailed(f"a run ended with code {code}:\n{last}")
        return read_journal(journal)


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
