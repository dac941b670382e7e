"""How do I test my own trainer? Run it, kill it, let it go on, and compare.

Synopsis:
    xtrainer verify-resume experiments/byte_lm.py --kills 3 --config.num_train_steps=40
"""

from xtrainer.testing.verify import Difference, Journal, choose_kills, compare, read_journal
from xtrainer.testing.witness import WitnessConfig, watch_batches

__all__ = [
    "Difference",
    "Journal",
    "WitnessConfig",
    "choose_kills",
    "compare",
    "read_journal",
    "watch_batches",
]
