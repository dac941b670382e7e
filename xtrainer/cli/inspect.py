"""``xtrainer inspect``: what does a run, or a checkpoint, hold, and is all of it whole?"""

import argparse
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from xtrainer.cli.described_run import describe
from xtrainer.cli.flat_config import changed, flatten
from xtrainer.cli.list_runs import STYLES
from xtrainer.cli.screen import (
    make_console,
    make_grid,
    make_table,
    print_indented,
    print_json,
    print_list,
    print_title,
    show_bytes,
)
from xtrainer.cli.usage import sub_parser

_EXAMPLES = """\
examples:
  xtrainer inspect runs/byte_lm
  xtrainer inspect runs/byte_lm --verify --parameters
  xtrainer inspect runs/byte_lm --json

Nothing is changed, no device is used, and nothing that the run names is imported.

--json prints {"path", "run", "status": {"name", "reason", "exit_code"}, "progress", "best",
"metrics", "checkpoints": [{"step", "path", "saved", "bytes", "metric", "problems"}], "starts",
"seconds", "environment", "model", "bytes", "records", "experiment", "config"}.

exit codes: 0 done; 1 a checkpoint is damaged; 2 the command line cannot be followed."""
_PROGRESS = {
    "epoch": "epochs",
    "examples": "examples",
    "skipped": "refused steps",
}


def add_parser(commands: Any) -> None:
    """Adds the sub-command to those of a parser."""
    description = "Shows what a run folder or a checkpoint says of itself."
    parser = sub_parser(commands, "inspect", description, _EXAMPLES)
    add = parser.add_argument
    add("folder", type=Path, metavar="RUN", help="the run folder, or the folder of a checkpoint")
    add("--verify", action="store_true", help="read every byte, not only the sizes of files")
    add("--parameters", action="store_true", help="list the arrays of the model")
    add("--all", action="store_true", help="show settings that have their default as well")
    add("--json", action="store_true", help="print one JSON document and nothing else")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Prints what there is; returns the exit code.

    Raises:
        UsageError: If it is no run and no checkpoint.
    """
    found = describe(options.folder, options.verify, options.parameters)
    if options.json:
        print_json(found)
    else:
        _print(found, options)
    return 1 if any(one["problems"] for one in found["checkpoints"]) else 0


def _print(found: Mapping[str, Any], options: argparse.Namespace) -> None:
    console = make_console(limit=120)
    console.print(Text(found["path"], style="bold"))
    _print_facts(console, found)
    if found["checkpoints"]:
        print_title(console, "checkpoints")
        _print_checkpoints(console, found, options.verify)
    if found["metrics"]:
        print_title(console, "newest metrics")
        _print_metrics(console, found["metrics"])
    if found["records"]:
        print_title(console, "black box")
        lines = [f"{one['step']}: {one['why']} {one['error'] or ''}" for one in found["records"]]
        print_list(console, lines)
    if found["config"]:
        print_title(console, f"settings{'' if options.all else ' that differ from the defaults'}")
        _print_config(console, found["config"], options.all)
    if options.parameters:
        print_title(console, "parameters")
        _print_arrays(console, found["model"])


def _print_facts(console: Console, found: Mapping[str, Any]) -> None:
    status, progress, model = found["status"], found["progress"], found["model"]
    facts: dict[str, Any] = {
        "status": Text.assemble(
            (status["name"], STYLES.get(status["name"], "yellow")), f": {status['reason']}"
        )
    }
    done = [f"{progress['step']:,} steps"] if progress["step"] is not None else ["no step"]
    done += [f"{progress[key]:,} {name}" for key, name in _PROGRESS.items() if progress.get(key)]
    facts["progress"] = ", ".join(done)
    for best in found["best"]:
        facts[f"best {best['metric']}"] = f"{_number(best['value'])} at step {best['step']:,}"
    if model["parameters"] is not None:
        sizes = ", ".join(f"{part} {show_bytes(size)}" for part, size in model["bytes"].items())
        facts["model"] = f"{model['parameters']:,} parameters; {sizes}"
    facts |= _surroundings(found["environment"])
    facts |= _times(found)
    sizes = sorted(found["bytes"]["entries"].items(), key=lambda item: -item[1])
    parts = ", ".join(f"{name} {show_bytes(size)}" for name, size in sizes[:4] if size)
    facts["size"] = f"{show_bytes(found['bytes']['total'])}: {parts}"
    if found["experiment"] is not None:
        facts["experiment"] = found["experiment"]
    table = make_grid()
    for name, value in facts.items():
        table.add_row(name, value if isinstance(value, Text) else Text(value))
    print_indented(console, table)


def _surroundings(environment: Mapping[str, Any]) -> dict[str, str]:
    facts = {}
    mesh, devices = environment["mesh"], environment["devices"]
    if mesh:
        where = f"{devices['count']} × {devices['kind']}, " if devices else ""
        axes = ", ".join(f"{name}={size}" for name, size in mesh.items())
        count = environment["process_count"]
        facts["mesh"] = f"{where}{axes}, {count} {'process' if count == 1 else 'processes'}"
        if environment["host"]:
            facts["mesh"] += f", on {environment['host']}"
    if environment["versions"]:
        named = environment["versions"].items()
        facts["versions"] = ", ".join(f"{name} {version}" for name, version in named)
        facts["code"] = environment["git"] or "in no repository of git"
    return facts


def _times(found: Mapping[str, Any]) -> dict[str, str]:
    facts = {}
    starts = [f"{_local(one['time'])} from step {one['step']:,}" for one in found["starts"]]
    if starts:
        more = f"{len(starts)}, the first {starts[0]}, the last " if len(starts) > 1 else ""
        facts["started"] = f"{more}{starts[-1]}"
    seconds = found["seconds"]
    total = sum(seconds.values())
    if total:
        order = sorted(seconds.items(), key=lambda item: -item[1])
        parts = [f"{name} {spent / total:.1%}" for name, spent in order if spent >= 0.001 * total]
        facts["time"] = f"{total:,.1f} s: {', '.join(parts)}"
    if found["bytes"]["changed"]:
        facts["changed"] = _local(found["bytes"]["changed"])
    return facts


def _print_checkpoints(console: Console, found: Mapping[str, Any], verified: bool) -> None:
    numbers = ("step", "size", "metric")
    names = ("step", "saved", "size", "metric", "state")
    table = make_table(*names, numbers=numbers, whole=("saved",))
    best = {one["step"] for one in found["best"][:1]}
    good = "whole, every byte was read" if verified else "whole"
    for one in found["checkpoints"]:
        state = Text(good + (", best" if one["step"] in best else ""), "green")
        if one["problems"]:
            state = Text("damaged: " + "; ".join(one["problems"][:3]), "red")
        metric = "–" if one["metric"] is None else _number(one["metric"])
        saved = _local(one["saved"]) if one["saved"] else "–"
        table.add_row(f"{one['step']:,}", saved, show_bytes(one["bytes"]), metric, state)
    print_indented(console, table)


def _print_metrics(console: Console, metrics: Mapping[str, Any]) -> None:
    table = make_table("set", "step", "metrics", numbers=("step",), whole=("set",))
    for name, row in metrics.items():
        values = ", ".join(f"{key} {_number(value)}" for key, value in row["metrics"].items())
        table.add_row(Text(name), f"{row['step']:,}", Text(values))
    print_indented(console, table)


def _print_config(console: Console, config: Mapping[str, Any], everything: bool) -> None:
    table = make_grid()
    for path, value in (flatten(config) if everything else changed(config)).items():
        table.add_row(Text(path), Text(json.dumps(value)))
    print_indented(console, table)


def _print_arrays(console: Console, model: Mapping[str, Any]) -> None:
    numbers = ("elements", "bytes")
    table = make_table("parameter", "shape", "dtype", *numbers, numbers=numbers, whole=("shape",))
    for leaf in model["arrays"]:
        shape = "×".join(map(str, leaf["shape"])) or "scalar"
        sizes = (f"{leaf['elements']:,}", show_bytes(leaf["bytes"]))
        table.add_row(Text(leaf["path"]), shape, leaf["dtype"], *sizes)
    table.add_section()
    total = show_bytes(model["bytes"].get("params", 0))
    table.add_row("total", "", "", f"{model['parameters'] or 0:,}", total)
    print_indented(console, table)


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"


def _local(moment: str) -> str:
    return datetime.fromisoformat(moment).astimezone().strftime("%Y-%m-%d %H:%M:%S")
