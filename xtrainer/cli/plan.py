"""``xtrainer plan``: what will this run need, and will it fit? Nothing is run, no data is read."""

import argparse
import dataclasses
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xtrainer.cli.devices import choose_devices
from xtrainer.cli.experiment import Experiment, load_experiment, read_config
from xtrainer.cli.screen import nothing_printed, print_json
from xtrainer.cli.tables import print_plan, print_problems
from xtrainer.cli.unused import noting_reads, unused_settings
from xtrainer.cli.usage import UsageError, sub_parser
from xtrainer.config import Config
from xtrainer.errors import ConfigError, XTrainerError
from xtrainer.parallel import build_mesh
from xtrainer.trainer import ModelConfig, shapes_only
from xtrainer.tuning import RunPlan, plan_run

_EXAMPLES = """\
examples:
  xtrainer plan experiments/byte_lm.py                                on the devices of this machine
  xtrainer plan experiments/byte_lm.py --devices 256 --config.data.batch_size=256
  xtrainer plan experiments/byte_lm.py --target v5e:2x4 --memory-limit 16GiB

exit codes: 0 the plan holds; 1 it does not (a mistake in the config, sizes that do not divide, more
memory than the limit: all are told); 2 the command line cannot be followed."""

_STDOUT = Path("-")
_UNITS = {"": 1, "B": 1} | {
    f"{letter}{kind}": base**power
    for power, letter in enumerate("KMGT", 1)
    for kind, base in (("B", 1000), ("iB", 1024))
}


def add_parser(commands: Any) -> None:
    """Adds the sub-command to those of a parser."""
    parser = sub_parser(
        commands,
        "plan",
        "Says what a run will need: mesh, parameters, memory, operations, lengths.",
        _EXAMPLES,
        takes_settings=True,
    )
    add = parser.add_argument
    add("experiment", help="a Python file with get_config() and make_trainer(config, mesh=None)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--devices", type=_count, metavar="N", help="plan for N virtual devices of the CPU"
    )
    where.add_argument(
        "--target", metavar="TOPOLOGY", help='compile for a TPU, as v5e:2x4; extra "tpu"'
    )
    add("--memory-limit", type=_bytes, metavar="BYTES", help="of each device, as 16GiB")
    add(
        "--eval-rows", type=_count, metavar="N", help="rows of an evaluation batch (default: train)"
    )
    add("--no-compile", action="store_true", help="only what shapes tell: seconds for any model")
    add(
        "--json",
        type=Path,
        nargs="?",
        const=_STDOUT,
        metavar="FILE",
        help="write the plan there as well; without FILE print it, and nothing else",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Makes and prints the plan; returns the exit code.

    Raises:
        UsageError: If the command line cannot be followed.
        MissingDependencyError: If the TPU's compiler is asked for and missing.
    """
    start = time.perf_counter()
    is_document = options.json == _STDOUT
    with nothing_printed(is_document):
        experiment, plan, problems = _find(options, overrides)
    seconds = time.perf_counter() - start
    data = {"holds": False, "problems": problems} if plan is None else plan.to_json()
    if is_document:
        print_json(data)
    elif options.json is not None:
        _write(options.json, data)
    if plan is not None and not is_document:
        print_plan(plan, experiment.path.name, options.target, seconds)
    elif not is_document:
        print_problems(experiment.path.name, problems)
    return 0 if plan is not None and plan.holds else 1


def _find(
    options: argparse.Namespace, overrides: Sequence[str]
) -> tuple[Experiment, RunPlan | None, list[str]]:
    """Returns the experiment, and its plan or why there is none."""
    devices = choose_devices(options.devices, options.target)
    experiment = load_experiment(options.experiment)
    config, problems = read_config(experiment.get_config(), overrides)
    if problems:
        return experiment, None, problems
    try:
        return experiment, _make_plan(experiment, config, devices, options), []
    except ConfigError as error:
        return experiment, None, list(error.problems)
    except XTrainerError as error:
        return experiment, None, [str(error)]


def _make_plan(
    experiment: Experiment, config: Any, devices: list[Any], options: argparse.Namespace
) -> RunPlan:
    model = Config.from_config_dict(ModelConfig, config.model)
    mesh = build_mesh(model.parallel, devices)
    with shapes_only(), noting_reads(config) as seen:
        trainer = experiment.make_trainer(config, mesh=mesh)
    plan = plan_run(
        trainer,
        config.get("num_epochs"),
        config.get("num_train_steps"),
        config.get("steps_per_epoch"),
        eval_rows=options.eval_rows,
        compile_steps=not options.no_compile,
        memory_limit=options.memory_limit,
    )
    unused = unused_settings(config, seen, experiment.path, experiment.get_config)
    notes = [
        f"config.{name}: nothing reads it. Is it spelt as its reader would?" for name in unused
    ]
    return dataclasses.replace(plan, notes=(*plan.notes, *notes))


def _write(path: Path, data: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"--json: cannot write {str(path)!r} ({error.strerror}), expected the path of a file "
            "in a folder that exists."
        ) from error


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number >= 1")
    return int(text)


def _bytes(text: str) -> int:
    """Returns the bytes that a text such as ``16GiB`` means.

    Example:
        >>> _bytes("1.5KiB"), _bytes("2GB"), _bytes("512")
        (1536, 2000000000, 512)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    units = {name.lower(): size for name, size in _UNITS.items()}
    if found is None or found[2].lower() not in units:
        raise argparse.ArgumentTypeError(
            f"found {text!r}, expected a number with a unit such as 16GiB, 900MB or 4096"
        )
    return int(float(found[1]) * units[found[2].lower()])
