"""Where the command is not installed: ``python -m xtrainer.cli plan experiment.py``."""

import sys

from xtrainer.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
