"""A run in which one process is slower than the others, and all go on.

Arguments: the folder, what is slow, and in which process.
"""

import sys
import time
from collections.abc import Iterator
from typing import Any

import disagree
import member
import probes

from xtrainer.loop import pace

DELAY_S, STEPS, WINDOW_S = 0.1, 40, 1.0


class Slow(disagree.NoLength):
    """Batches that take long to come."""

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            time.sleep(DELAY_S)
            yield batch


def run(own: member.Member, what: str, who: str) -> None:
    """Trains for some seconds."""
    pace.WINDOW_S = WINDOW_S
    concerned = own.is_one_of(who)
    stage = disagree.Stage()

    def act(trainer: Any, *args: Any) -> None:
        if concerned and what == "callback":
            time.sleep(DELAY_S)

    trainer = stage.begin(own, "", probes.acting("on_training_step", act))
    batches = stage.batches() * 2
    loader = Slow(batches) if concerned and what == "loader" else disagree.NoLength(batches)
    trainer.train_model(loader, num_train_steps=STEPS)
    own.record("end", {"step": trainer.global_step})


if __name__ == "__main__":
    run(member.join(), *sys.argv[2:4])
