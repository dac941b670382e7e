"""Tests import the workers as well: alone, they are the run on one device to compare with."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "workers"))
