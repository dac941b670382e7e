"""The command line: what is measured, how often, and where the results go."""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import report
from benchmarks.catalog import PEERS, WORKLOADS
from benchmarks.conduct import measure_all
from benchmarks.measure import MIN_REPEATS


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Returns the options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measures xtrainer, and on request its peers, against hand-written loops.",
    )
    names = [*WORKLOADS, *PEERS]
    parser.add_argument(
        "--only",
        nargs="+",
        choices=names,
        metavar="NAME",
        help="workloads and peers; where left out, all workloads, and of peers none",
    )
    parser.add_argument("--peers", action="store_true", help="measure all peers as well")
    parser.add_argument(
        "--repeats", type=int, help=f"pairs of each measurement; below {MIN_REPEATS} is a try-out"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="rows, versions and devices")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for the table and a plot")
    parser.add_argument("--list", action="store_true", help="say what there is, and end")
    found = parser.parse_args(arguments)
    if found.repeats is not None and found.repeats < 1:
        parser.error(f"--repeats: found {found.repeats}, expected a number >= 1.")
    return found


def chosen(options: argparse.Namespace) -> tuple[list[str], list[str], bool]:
    """Returns workloads, peers, and whether xtrainer is measured.

    Peers that are named are measured alone.

    Example:
        >>> chosen(parse(["--only", "gpt", "keras"]))
        (['gpt'], ['keras'], False)
    """
    only = options.only or []
    workloads = [name for name in WORKLOADS if name in only] or list(WORKLOADS)
    peers = [name for name in PEERS if options.peers or name in only]
    return workloads, peers, options.peers or not peers


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and shows."""
    options = parse(arguments)
    if options.list:
        print("\n".join(f"{name:<12}{about}" for name, about in WORKLOADS.items()))
        print("\n".join(f"{name:<12}peer, needs {', '.join(PEERS[name])}" for name in PEERS))
        return
    # A stop by the system ends the child process as Ctrl-C does, rather than leaving it behind.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    workloads, peers, ours = chosen(options)
    result = measure_all(workloads, peers, options.repeats, ours=ours)
    print(f"\n{report.table(result['rows'])}\n\n{report.facts(result['machines'])}")
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(report.to_json(result), encoding="utf-8")
    if options.out is not None:
        print(report.write(result, options.out))


if __name__ == "__main__":
    main()
