"""How does a script run in several processes on this machine? ``python -m xtrainer.launch``."""

import argparse
import sys
from collections.abc import Sequence

from xtrainer.errors import ConfigError
from xtrainer.launch.command import add_options, follow, is_setting

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
    options, rest = parser.parse_known_args(arguments[:split])
    unknown = [argument for argument in rest if not is_setting(argument)]
    if unknown:
        parser.error(f"found {unknown[0]!r}, which is no option; the script goes behind --")
    try:
        return follow(options, rest, list(arguments[split + 1 :]))
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
    add_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
