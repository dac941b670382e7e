"""The command ``xtrainer`` where it is not on the path: ``python -m xtrainer plan FILE``."""

import sys

from xtrainer.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
