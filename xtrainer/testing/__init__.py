"""How do I test my own trainer? Run it, kill it, let it go on, and compare.

Synopsis:
    xtrainer verify-resume experiments/byte_lm.py --kills 3 --config.num_train_steps=40
    xtrainer drill experiments/byte_lm.py --save-every 10 --config.num_train_steps=60
"""

from xtrainer.testing.faults import FAULTS, MOMENTS, Fault, flip_bits, full_disk, plant
from xtrainer.testing.verify import Difference, Journal, choose_kills, compare, read_journal
from xtrainer.testing.witness import WitnessConfig, watch_batches, watch_saves

__all__ = [
    "FAULTS",
    "MOMENTS",
    "Difference",
    "Fault",
    "Journal",
    "WitnessConfig",
    "choose_kills",
    "compare",
    "flip_bits",
    "full_disk",
    "plant",
    "read_journal",
    "watch_batches",
    "watch_saves",
]
