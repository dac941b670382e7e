"""How do I start this from a shell? The command ``xtrainer`` and its sub-commands.

Synopsis:
    xtrainer plan experiments/byte_lm.py --devices 256 --config.data.batch_size=256
"""

from xtrainer.cli.main import main

__all__ = ["main"]
