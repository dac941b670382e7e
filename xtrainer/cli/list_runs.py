"""``xtrainer list``: which runs are in a folder, how far have they come, and which is the best?"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.text import Text

from xtrainer.checkpoint.items import float_to_json
from xtrainer.cli.run_folder import (
    Status,
    best_values,
    checkpoints_of,
    disk_use,
    find_runs,
    iso,
    local,
    newest_rows,
    read_lines,
    status_of,
)
from xtrainer.cli.screen import make_console, make_table, print_json, show_bytes
from xtrainer.cli.usage import UsageError, sub_parser

_EXAMPLES = """\
examples:
  xtrainer list runs
  xtrainer list runs --sort best --json

status: running (its lock is held), finished, stopped (a signal, a callback, steps that were not
finite), failed (an error), killed (it has not come to its end), not known (an old or foreign run).
best: of the metric that the newest checkpoint monitors.

--json prints {"folder", "runs": [{"name", "path", "status", "reason", "exit_code", "step", "best":
{"metric", "value", "step"} or null, "changed", "bytes"}]}.

exit codes: 0 done, also where there is no run; 2 the command line cannot be followed."""


@dataclass(frozen=True)
class Entry:
    """One run of the list.

    Attributes:
        path: Its folder.
        name: Its folder, seen from the one that is listed.
        status: How it stands.
        step: The newest step that is known.
        best: Name, value and step of the best monitored metric.
        changed: When a file was last written, in seconds of ``time.time()``.
        num_bytes: Of all its files.
    """

    path: Path
    name: str
    status: Status
    step: int | None
    best: tuple[str, float, int] | None
    changed: float
    num_bytes: int


_KEYS: dict[str, Callable[[Entry], Any]] = {
    "name": lambda e: e.name,
    "status": lambda e: (e.status.name, e.name),
    "step": lambda e: -1 if e.step is None else e.step,
    "best": lambda e: (e.best is None, e.best or ()),
    "changed": lambda e: e.changed,
    "size": lambda e: e.num_bytes,
}
_NARROW = 72
"""Columns below which the last two are left out."""
STYLES = {"running": "cyan", "finished": "green", "failed": "red", "killed": "red"}
"""How each status is shown; others are yellow."""


def add_parser(commands: Any) -> None:
    """Adds the sub-command to those of a parser."""
    parser = sub_parser(commands, "list", "Lists the runs in a folder, at any depth.", _EXAMPLES)
    add = parser.add_argument
    add("folder", type=Path, nargs="?", default=Path("runs"), help="where to look (default: runs)")
    add("--sort", choices=list(_KEYS), default="name", help="by which column (default: name)")
    add("--reverse", action="store_true", help="the last first")
    add("--json", action="store_true", help="print one JSON document and nothing else")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Prints the list; returns the exit code.

    Raises:
        UsageError: If there is no such folder.
    """
    folder = options.folder.expanduser()
    if not folder.is_dir():
        raise UsageError(f"Found no folder {str(folder)!r}, expected one that runs are in.")
    found = [read_entry(path, folder) for path in find_runs(folder)]
    entries = sorted(found, key=_KEYS[options.sort], reverse=options.reverse)
    if options.json:
        print_json({"folder": str(folder), "runs": [_to_json(entry) for entry in entries]})
    elif not entries:
        print(f"No run in {str(folder)!r}.")
    else:
        _print(entries)
    return 0


def read_entry(path: Path, folder: Path) -> Entry:
    """Returns what the list says of a run.

    Args:
        path: Of the run.
        folder: The one that is listed.
    """
    lines = read_lines(path)
    checkpoints = checkpoints_of(path)
    steps = [row["step"] for row in newest_rows(path).values()]
    steps += [line.step for line in lines[-1:]] + [one.step for one in checkpoints[-1:]]
    best = next(((name, *entry) for name, entry in best_values(checkpoints).items()), None)
    name = "." if path == folder else str(path.relative_to(folder))
    size, changed = disk_use(path)
    newest = max(steps, default=None)
    return Entry(path, name, status_of(path, lines), newest, best, changed, size)


def _to_json(entry: Entry) -> dict[str, Any]:
    best = None
    if entry.best is not None:
        metric, value, step = entry.best
        best = {"metric": metric, "value": float_to_json(value), "step": step}
    status = asdict(entry.status)
    return {
        "name": entry.name,
        "path": str(entry.path.resolve()),
        "status": status["name"],
        "reason": status["reason"],
        "exit_code": status["exit_code"],
        "step": entry.step,
        "best": best,
        "changed": iso(entry.changed),
        "bytes": entry.num_bytes,
    }


def _print(entries: Sequence[Entry]) -> None:
    console = make_console(limit=160, rows_in_one_line=True)
    columns = ["run", "status", "step", "best", "changed", "size"]
    if console.width < _NARROW:
        columns = columns[:4]
    table = make_table(*columns, numbers=("step", "size"), whole=("status", "best", "changed"))
    for entry in entries:
        best = "–"
        if entry.best is not None:
            best = f"{entry.best[0]} {entry.best[1]:.4g}"
        cells = [
            Text(entry.name),
            Text(entry.status.name, STYLES.get(entry.status.name, "yellow")),
            "–" if entry.step is None else f"{entry.step:,}",
            Text(best),
            local(entry.changed),
            show_bytes(entry.num_bytes),
        ]
        table.add_row(*cells[: len(columns)])
    console.print(table)
