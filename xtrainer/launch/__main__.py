"""How does a script run in several processes on this machine? ``python -m xtrainer.launch``."""

import argparse
import sys
from collections.abc import Sequence

from xtrainer.errors import ConfigError
from xtrainer.launch.local import run_local

_EXAMPLE = """\
example, a run of two processes with four virtual CPU devices each:
  python -m xtrainer.launch -n 2 --devices-per-process 4 -- train.py --config.num_epochs=3

The script calls xtrainer.initialize() first. Lines come out as "[1] ...", behind the number of the
process. The exit code is that of the first process that failed (128 + n for signal n), 124 after
--timeout, otherwise 0."""


def main(arguments: Sequence[str]) -> int:
    """Runs what the command line says and returns the exit code.

    Args:
        arguments: Without the name of the program: options, ``--``, then a script or ``-m module``
            with its own arguments.
    """
    parser = _parser()
    split = list(arguments).index("--") if "--" in arguments else len(arguments)
    options, unknown = parser.parse_known_args(arguments[:split])
    if unknown:
        parser.error(f"found {unknown[0]!r}, which is no option; the script goes behind --")
    command = list(arguments[split + 1 :])
    if not command:
        parser.error("found no script; put it behind the options and --, as in: -n 2 -- train.py")
    try:
        return run_local(
            [sys.executable, *command],
            num_processes=options.num_processes,
            devices_per_process=options.devices_per_process,
            timeout_s=options.timeout,
            failure_grace_s=options.failure_grace,
            stop_grace_s=options.stop_grace,
        )
    except ConfigError as error:
        parser.error(str(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m xtrainer.launch",
        usage="%(prog)s -n N [options] -- script.py [arguments]   (or: -- -m module [arguments])",
        description="Runs a Python script in several processes on this machine, joined to one run.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "-n",
        "--num-processes",
        type=int,
        required=True,
        metavar="N",
        help="how many processes the run has",
    )
    parser.add_argument(
        "--devices-per-process",
        type=int,
        metavar="D",
        help="virtual CPU devices of each process; the run is then on the CPU",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        metavar="S",
        help="seconds that the run may take; then exit code 124",
    )
    parser.add_argument(
        "--failure-grace",
        type=float,
        default=5.0,
        metavar="S",
        help="seconds from a failure until the other processes are killed (default: %(default)g)",
    )
    parser.add_argument(
        "--stop-grace",
        type=float,
        default=60.0,
        metavar="S",
        help="seconds from Ctrl-C or SIGTERM until all are killed (default: %(default)g)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
