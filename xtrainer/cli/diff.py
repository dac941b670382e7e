"""``xtrainer diff``: in what do two runs differ, in what was asked for and in what came of it?"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from xtrainer.cli.described_run import describe
from xtrainer.cli.flat_config import flatten
from xtrainer.cli.screen import make_console, make_table, print_indented, print_json, print_title
from xtrainer.cli.usage import sub_parser

_EXAMPLES = """\
examples:
  xtrainer diff runs/a runs/b
  xtrainer diff runs/a runs/b --json

Compared are the settings but for the run's own folder, the versions of libraries, the revision of
the code, devices and mesh, the number of steps, the newest metrics of each set and the best ones,
but for those that measure time (..time_s).

--json prints {"runs": {"a", "b"}, "same", "settings", "versions", "environment", "steps",
"metrics", "best"}: each thing that differs, by name, as {"a", "b"}, and of numbers "difference" as
well. What one run lacks is left out.

exit codes: 0 they are the same; 1 they differ; 2 the command line cannot be followed."""
_OWN = ("trainer.logger.log_path", "trainer.logger.run_name")
_PLACES = ("devices", "mesh", "process_count", "numerics")
_LACKS = object()


def add_parser(commands: Any) -> None:
    """Adds the sub-command to those of a parser."""
    description = "Compares two runs: what was asked for, where it ran, what came of it."
    parser = sub_parser(commands, "diff", description, _EXAMPLES)
    add = parser.add_argument
    add("a", type=Path, metavar="RUN", help="a run folder, or the folder of a checkpoint")
    add("b", type=Path, metavar="RUN", help="another one")
    add("--json", action="store_true", help="print one JSON document and nothing else")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Prints in what the runs differ; returns the exit code.

    Raises:
        UsageError: If one is no run.
    """
    runs = {"a": describe(options.a), "b": describe(options.b)}
    found = compare(**runs)
    if options.json:
        print_json({"runs": {name: one["path"] for name, one in runs.items()}, **found})
    else:
        _print(found, {n: f"{one['path']} ({one['status']['name']})" for n, one in runs.items()})
    return 0 if found["same"] else 1


def compare(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """Returns in what two described runs differ; see ``xtrainer diff --help``."""
    parts = {
        "settings": _differing(*(_settings(one) for one in (a, b))),
        "versions": _differing(*(_versions(one) for one in (a, b))),
        "environment": _differing(*_environments(a, b)),
        "steps": _differing(*({"steps": one["progress"]["step"]} for one in (a, b))),
        "metrics": _differing(*(_metrics(one) for one in (a, b))),
        "best": _differing(*({e["metric"]: e["value"] for e in one["best"]} for one in (a, b))),
    }
    for name in ("steps", "metrics", "best"):
        for entry in parts[name].values():
            before, after = entry.get("a"), entry.get("b")
            if isinstance(before, int | float) and isinstance(after, int | float):
                entry["difference"] = after - before
    return {"same": not any(parts.values()), **parts}


def _differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    found = {}
    for name in [*a, *(key for key in b if key not in a)]:
        values = {"a": a.get(name, _LACKS), "b": b.get(name, _LACKS)}
        if values["a"] != values["b"] or type(values["a"]) is not type(values["b"]):
            found[name] = {key: value for key, value in values.items() if value is not _LACKS}
    return found


def _settings(described: Mapping[str, Any]) -> dict[str, Any]:
    return {p: value for p, value in flatten(described["config"]).items() if p not in _OWN}


def _versions(described: Mapping[str, Any]) -> dict[str, Any]:
    environment = described["environment"]
    return {**(environment["versions"] or {}), "code": environment["git"]}


def _environments(*described: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns devices and the like of runs, as far as all of them say."""
    all_of_them = [one["environment"] for one in described]
    known = [n for n in _PLACES if all(environment[n] is not None for environment in all_of_them)]
    return [flatten({name: environment[name] for name in known}) for environment in all_of_them]


def _metrics(described: Mapping[str, Any]) -> dict[str, Any]:
    return {
        f"{name}/{key}": value
        for name, row in described["metrics"].items()
        for key, value in row["metrics"].items()
        if not key.endswith("time_s")
    }


def _print(found: Mapping[str, Any], runs: Mapping[str, str]) -> None:
    console = make_console(limit=140)
    for name, run_folder in runs.items():
        console.print(Text(f"{name}  {run_folder}", style="bold"))
    if found["same"]:
        console.print(Text("\nThe same: settings, versions, code, devices, steps and metrics."))
        return
    for name, entries in found.items():
        if name != "same" and entries:
            print_title(console, name)
            _print_part(console, entries, any("difference" in one for one in entries.values()))
    equal = [name for name, entries in found.items() if name != "same" and not entries]
    if equal:
        console.print(Text(f"\nthe same: {', '.join(equal)}"))


def _print_part(console: Console, entries: Mapping[str, Any], is_number: bool) -> None:
    names = ("", "a", "b", *(["b - a"] if is_number else []))
    table = make_table(*names, numbers=names[1:] if is_number else ())
    for name, entry in entries.items():
        cells = [_shown(entry, key) for key in ("a", "b")]
        if is_number:
            cells.append(f"{entry['difference']:+.4g}" if "difference" in entry else "")
        table.add_row(Text(name), *map(Text, cells))
    print_indented(console, table)


def _shown(entry: Mapping[str, Any], key: str) -> str:
    if key not in entry:
        return "–"
    value = entry[key]
    return f"{value:.6g}" if isinstance(value, float) else json.dumps(value)
