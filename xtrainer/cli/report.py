"""``xtrainer report``: what has happened in a run, or how do several differ? A page of HTML."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xtrainer.cli.screen import print_json
from xtrainer.cli.usage import sub_parser
from xtrainer.report import ReportError, read_run, summarize, write_report

_EXAMPLES = """\
examples:
  xtrainer report runs/a
  xtrainer report runs/a runs/b --output comparison.html
  xtrainer report runs/a --json

The file needs no network: open it in a browser, or send it to somebody.

exit codes: 0 it is written; 1 a folder holds no run, or the file cannot be written; 2 the command
line cannot be followed, or plotly is not installed."""


def add_parser(commands: Any) -> None:
    """Adds the sub-command to those of a parser."""
    description = "Writes what has happened in a run, or how several runs differ."
    parser = sub_parser(commands, "report", description, _EXAMPLES)
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="a run folder; several are compared")
    add("--output", type=Path, metavar="FILE", help="default: report.html in the first run folder")
    add("--json", action="store_true", help="print the figures of each run, and write no file")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Reads, writes and says where; returns the exit code."""
    try:
        read = [read_run(folder) for folder in options.runs]
        if options.json:
            figures = {str(one.folder): summarize(one).to_json() for one in read}
            print_json(figures)
            return 0
        path = write_report(read, options.output)
    except ReportError as error:
        print(f"xtrainer report: {error}", file=sys.stderr)
        return 1
    for one in read:
        for part, why in one.missing.items():
            print(f"{one.folder}: no {part}: {why}", file=sys.stderr)
    print(f"{path} ({path.stat().st_size / 2**20:.1f} MiB)")
    return 0
