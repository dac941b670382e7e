"""``xtrainer replay``: where in a step does the first NaN or Inf appear? Is its result right?"""

import argparse
import math
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from xtrainer.callbacks import CallbackConfig
from xtrainer.checkpoint.commit import read_commit
from xtrainer.checkpoint.items import listed
from xtrainer.checkpoint.metadata import CHECKPOINTS_FOLDER, list_steps
from xtrainer.checkpoint.usable import choose_usable
from xtrainer.cli.compared_run import CompareConfig, Comparison
from xtrainer.cli.experiment import load_experiment
from xtrainer.cli.replayed_run import Outcome, ReplayConfig, Replayed, replayed
from xtrainer.cli.usage import UsageError, sub_parser, whole
from xtrainer.config import parse_config
from xtrainer.errors import CheckpointError, ConfigError, XTrainerError
from xtrainer.trainer.box_files import RecordError, read_records

_EXAMPLES = """\
examples:
  xtrainer replay runs/byte_lm --experiment experiments/byte_lm.py
  xtrainer replay runs/byte_lm --experiment experiments/byte_lm.py --step 120 --config.data.seed=1
  xtrainer replay runs/byte_lm --experiment experiments/byte_lm.py --compare

The run is only read. It goes on in a folder of its own, from the newest checkpoint before the step,
with the settings of the experiment: give the same --config.... that the run was given.

--compare takes the steps between two checkpoints again and compares, bit for bit, with what was on
the devices when the second was saved: devices that compute wrongly, now or then, are found so. The
program, the number of devices and their kind must be those of the run.

exit codes: 0 what is not finite was found, or the state is the same; 1 the step is finite when it
is replayed, the state is another, or the step cannot be replayed; 2 the command line cannot be
followed."""
_NORMS = 10


def add_parser(commands: Any) -> None:
    """Adds the sub-command to those of a parser."""
    parser = sub_parser(
        commands,
        "replay",
        "Takes a step of a run again and names the first module, operation or "
        "parameter that is not finite.",
        _EXAMPLES,
        takes_settings=True,
    )
    add = parser.add_argument
    add("folder", type=Path, metavar="RUN", help="the run folder")
    add("--experiment", required=True, help="the Python file that the run was started from")
    add("--step", type=whole, metavar="N", help="the step (default: the newest refused one)")
    add("--compare", action="store_true", help="compare its result with its checkpoint instead")
    add(
        "--top",
        type=whole,
        default=_NORMS,
        metavar="N",
        help="gradient norms that are shown",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Replays the step and prints what was found; returns the exit code.

    Raises:
        UsageError: If the command line cannot be followed.
    """
    experiment = load_experiment(options.experiment)
    if experiment.run is None:
        raise UsageError(f"{experiment.path}: found no function run(config). Add one that trains.")
    folder = options.folder.expanduser().resolve()
    if not folder.is_dir():
        raise UsageError(f"Found no folder {str(folder)!r}, expected that of a run.")
    choose = _choose_saved if options.compare else _choose_step
    step, watching = choose(folder, options.step)
    try:
        config = parse_config(experiment.get_config(), overrides)
    except ConfigError as error:
        raise UsageError(str(error)) from error
    checkpoint = _checkpoint_before(folder, step)
    console = Console(highlight=False)
    own = Path(tempfile.mkdtemp(prefix="xtrainer-replay-"))
    try:
        experiment.run(replayed(config, watching, checkpoint, own))
    except Replayed as end:
        if isinstance(end.outcome, Comparison):
            return _print_comparison(console, step, end.outcome)
        return _print(console, step, end.outcome, options.top)
    except XTrainerError as error:
        console.print(Text(f"Step {step} cannot be replayed: {error}", style="bold red"))
        return 1
    finally:
        shutil.rmtree(own, ignore_errors=True)
    text = f"Step {step} cannot be replayed: the experiment has ended before it."
    console.print(Text(text, style="bold red"))
    return 1


def _choose_step(folder: Path, step: int | None) -> tuple[int, CallbackConfig]:
    """Returns the step to look into, and what does."""
    if step is None:
        step = _newest_refused(folder)
    if step < 1:
        raise UsageError(f"--step: found {step}, expected a number >= 1.")
    return step, ReplayConfig(run_folder=str(folder), step=step)


def _choose_saved(folder: Path, step: int | None) -> tuple[int, CallbackConfig]:
    """Returns the step to compare with its checkpoint, by default the newest, and what does."""
    try:
        found = choose_usable(folder, "latest" if step is None else step).folder
        known = read_commit(found).fingerprints
    except CheckpointError as error:
        raise UsageError(f"There is nothing to compare with. {error}") from error
    if not known:  # it has come from an older format
        raise UsageError(f"{found}: found no fingerprints of its values. Use another step.")
    number = int(found.name)
    if number < 1:
        raise UsageError(f"{found}: no step leads to it, expected a checkpoint of a later one.")
    return number, CompareConfig(step_folder=str(found), step=number)


def _newest_refused(folder: Path) -> int:
    try:
        records = read_records(folder)
    except RecordError as error:
        raise UsageError(str(error)) from error
    refused = [step for step, record in records.items() if record.get("why") == "refused"]
    if not refused:
        raise UsageError(
            f"{folder}: found no record of a refused step, expected one in 'black_box'. Say which "
            "step to replay with --step N."
        )
    return max(refused)


def _checkpoint_before(folder: Path, step: int) -> Path | None:
    """Returns the newest usable checkpoint of a run from which a step can be reached."""
    root = folder / CHECKPOINTS_FOLDER
    for number in sorted(list_steps(root), reverse=True) if root.is_dir() else ():
        if number < step:
            try:
                return choose_usable(root, number).folder
            except CheckpointError:
                continue  # damaged; an older one will do
    return None


def _print_comparison(console: Console, step: int, outcome: Comparison) -> int:
    first = outcome.start + 1
    steps = f"Step {step}" if first == step else f"The steps {first} to {step}"
    start = f"the checkpoint of step {outcome.start}" if outcome.start else "the beginning"
    steps += f", taken again from {start}"
    if not outcome.differing:
        text = f"{steps}: all {outcome.count} arrays are, bit for bit, those "
        console.print(Text(f"{text}of the checkpoint of step {step}.", style="bold"))
        return 0
    text = f"{steps}: {len(outcome.differing)} of {outcome.count} arrays are "
    text += f"not those of the checkpoint of step {step}:\n{listed(outcome.differing)}\n"
    text += "A device has computed wrongly, then or now; or the program, the devices, the data or "
    text += "a change of the state from outside the steps are not those of the run."
    console.print(Text(text, style="bold red"))
    return 1


def _print(console: Console, step: int, outcome: Outcome, top: int) -> int:
    diagnosis = outcome.diagnosis
    table = Table("step", "checkpoint", "batch", "loss")
    start = f"step {outcome.start}" if outcome.start else "none, from the beginning"
    loss = "" if diagnosis is None else f"{diagnosis.loss:.6g}"
    table.add_row(str(step), start, f"from the {outcome.batch_from}", loss)
    console.print(table)
    if outcome.same_batch is False:
        text = "The loader has given another batch than the one that was recorded."
        console.print(Text(text, style="yellow"))
    if diagnosis is None or not diagnosis.phase:
        text = "The step is finite when it is replayed."
        if outcome.refused:
            text = "The step is refused again, but its loss, gradient and update are finite here."
        console.print(Text(text, style="bold"))
    else:
        console.print(Text(str(diagnosis), style="bold red"))
    if diagnosis is not None:
        _print_norms(console, diagnosis.grad_norms, top)
    return 0 if diagnosis is not None and diagnosis.phase else 1


def _print_norms(console: Console, norms: dict[str, float], top: int) -> None:
    size = lambda item: math.inf if math.isnan(item[1]) else item[1]  # noqa: E731
    largest = sorted(norms.items(), key=size, reverse=True)[: max(top, 0)]
    if largest:
        table = Table("parameter", "norm of its gradient")
        for name, norm in largest:
            table.add_row(Text(name), f"{norm:.6g}")
        console.print(table)
