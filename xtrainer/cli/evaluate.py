"""``xtrainer evaluate``: how good is a checkpoint of a run on one set of its data?"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from xtrainer.checkpoint import choose_usable, read_meta
from xtrainer.checkpoint.items import float_to_json
from xtrainer.cli.experiment import Experiment, checked_config, load_experiment
from xtrainer.cli.record import apply_record, read_record
from xtrainer.cli.screen import nothing_printed, print_json, tell
from xtrainer.cli.train import show_metrics
from xtrainer.cli.usage import SETTING, UsageError, sub_parser
from xtrainer.config import Config
from xtrainer.errors import CheckpointError, CheckpointNotFoundError, did_you_mean
from xtrainer.launch import initialize, is_main_process
from xtrainer.parallel import build_mesh
from xtrainer.trainer import ModelConfig, TrainerModule, shapes_only

_EXAMPLES = """\
examples:
  xtrainer evaluate runs/byte_lm --experiment experiments/byte_lm.py
  xtrainer evaluate runs/byte_lm --experiment experiments/byte_lm.py --checkpoint last --set val
  xtrainer evaluate runs/byte_lm --experiment experiments/byte_lm.py --json

Model, optimizer and trainer are configured as the checkpoint says, the data as RUN/experiment.json
does, where that is; else as get_config() and the --config.... that are given, which count most.
The classes are those of the file that is named here; nothing is imported because a run asks for it.
To use other devices than the run had, give --config.model.parallel....

--json prints {"run", "checkpoint", "step", "set", "metrics"}; NaN and infinities are texts.

exit codes: 0 done; 1 it cannot be evaluated; 2 the command line cannot be followed."""
_MESH = f"{SETTING}model.parallel."


class _Evaluation(NamedTuple):
    checkpoint: Path
    step: int
    metrics: Mapping[str, float]


def add_parser(commands: Any) -> None:
    """Adds the sub-command to those of a parser."""
    parser = sub_parser(
        commands,
        "evaluate",
        "Computes the metrics of a checkpoint, the same that training would.",
        _EXAMPLES,
        takes_settings=True,
    )
    add = parser.add_argument
    add("folder", type=Path, metavar="RUN", help="the run folder, or the folder of a checkpoint")
    add(
        "--experiment", required=True, help="its Python file with make_trainer(...), make_loaders()"
    )
    add(
        "--checkpoint",
        default="best",
        metavar="WHICH",
        help="best (default; the newest where none is), last, or a step",
    )
    add("--set", default="test", metavar="NAME", help="of make_loaders(...) (default: test)")
    add("--json", action="store_true", help="print one JSON document and nothing else")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Evaluates and prints the metrics; returns the exit code.

    Raises:
        UsageError: If the command line cannot be followed.
        XTrainerError: If the checkpoint cannot be evaluated.
    """
    with nothing_printed(options.json):
        found = _evaluate(options, overrides)
    if not is_main_process():
        return 0
    if options.json:
        data = {
            "run": str(options.folder),
            "checkpoint": str(found.checkpoint),
            "step": found.step,
            "set": options.set,
            "metrics": {name: float_to_json(value) for name, value in found.metrics.items()},
        }
        print_json(data)
        return 0
    tell(f"checkpoint of step {found.step}: {found.checkpoint}")
    show_metrics(options.set, found.metrics)
    return 0


def _evaluate(options: argparse.Namespace, overrides: Sequence[str]) -> _Evaluation:
    experiment = load_experiment(options.experiment)
    if experiment.make_loaders is None:
        raise UsageError(
            f"{experiment.path}: found no function make_loaders(data). Add one that returns a "
            "dictionary of loaders by the name of their set."
        )
    folder = _choose(options.folder, options.checkpoint)
    initialize()
    config = _configure(experiment, options.folder, overrides)
    trainer = _load(experiment, config, folder, overrides)
    loaders = experiment.make_loaders(config.get("data"))
    if options.set not in loaders:
        hint = did_you_mean(options.set, loaders)
        raise UsageError(f"--set: found {options.set!r}, expected a set of make_loaders. {hint}")
    loader = loaders[options.set]
    if options.set == "train" and not hasattr(loader, "__len__"):
        raise UsageError(
            "--set: found 'train', whose loader says no length and may have no end. Expected "
            "another set, or a loader with __len__."
        )
    if options.set == "test":
        return _Evaluation(folder, int(folder.name), trainer.test_model(loader))
    return _Evaluation(folder, int(folder.name), trainer.eval_model(loader, options.set))


def _choose(run_folder: Path, which: str) -> Path:
    """Returns the folder of a checkpoint, of which every byte was read."""
    run_folder = run_folder.expanduser().resolve()
    if not run_folder.is_dir():
        raise UsageError(f"Found no folder {str(run_folder)!r}, expected that of a run.")
    step: Any = {"last": "latest", "latest": "latest", "best": "best"}.get(which)
    if step is None and not (which.isascii() and which.isdecimal() and len(which) < 20):
        raise UsageError(f"--checkpoint: found {which!r}, expected best, last or a step.")
    try:
        try:
            return choose_usable(run_folder, int(which) if step is None else step).folder
        except CheckpointNotFoundError:
            if which != "best":
                raise
            return choose_usable(run_folder, "latest").folder
    except CheckpointNotFoundError as error:
        raise UsageError(str(error)) from error


def _configure(experiment: Experiment, run_folder: Path, overrides: Sequence[str]) -> Any:
    """Returns the experiment's config with the settings of the run, then those that are given."""
    config = experiment.get_config()
    record = read_record(run_folder)
    if record is not None:
        name, saved = record
        if name != experiment.path.stem:
            tell(f"note: the run was one of {name!r}, and the file is {experiment.path.name}.")
        apply_record(config, saved)
    return checked_config(config, overrides, needs_model=False)


def _load(
    experiment: Experiment, config: Any, folder: Path, overrides: Sequence[str]
) -> TrainerModule:
    """Returns a trainer of the experiment's class with configs and model of a checkpoint."""
    with shapes_only():
        like = experiment.make_trainer(config)
    mesh = None
    if any(override.startswith(_MESH) for override in overrides):
        mesh = build_mesh(Config.from_config_dict(ModelConfig, config.model).parallel)
    # A name leads to what the program has registered; a class only the program can give.
    saved = (read_meta(folder)["config"].get("model") or {}).get("model_class")
    given = saved if isinstance(saved, str) else like.model_config.model_class
    try:
        return type(like).load_from_checkpoint(folder, model_class=given, mesh=mesh)
    except CheckpointError as error:
        error.add_note(f"Is {experiment.path} the file that the run was started from?")
        raise
