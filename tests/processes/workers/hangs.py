"""What makes a run stand still: one process that goes on living and does not go on training.

Arguments: the folder, what happens, to which process, and fields of ``TrainerConfig`` as JSON.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import disagree
import member
import probes

from xtrainer.checkpoint import commit

AT = 3
"""The step from which on it happens."""
LONG_S = 100.0


class Sleeping:
    """A loader that sleeps after some batches, or before each."""

    def __init__(self, own: member.Member, batches: list[Any], after: int) -> None:
        self.own, self.batches, self.after = own, batches, after

    def __len__(self) -> int:
        return 1000

    def __iter__(self) -> Iterator[Any]:
        for number in range(len(self)):
            if number == self.after:
                self.own.fails()
                time.sleep(LONG_S)
            yield self.batches[number % len(self.batches)]


def sleeps(own: member.Member) -> None:
    """Waits for something that does not come."""
    own.fails()
    time.sleep(LONG_S)


def naps(own: member.Member) -> None:
    """Waits once, for a little longer than it may."""
    if own.failed is None:
        own.fails()
        time.sleep(4.0)


def stops(own: member.Member) -> None:
    """Is stopped, all threads of it."""
    own.fails()
    os.kill(os.getpid(), signal.SIGSTOP)


ACTS = {"callback": sleeps, "stopped": stops, "nap": naps}


def run(own: member.Member, what: str, who: str, config: dict[str, Any]) -> None:
    """Trains until it happens."""
    concerned = own.is_one_of(who)
    stage = disagree.Stage(**config)

    def act(trainer: Any, *args: Any) -> None:
        if concerned and trainer.global_step == AT:
            ACTS[what](own)

    def reached(moment: str) -> None:
        if moment == "meta":
            sleeps(own)

    callbacks = [probes.acting("on_training_step", act)] if what in ACTS else []
    folder = own.folder / "run"
    trainer = stage.begin(own, "run", *callbacks, folder=folder)
    trainer.train_model(stage.loader(), num_train_steps=1)  # what is measured compiles nothing
    train, val = stage.loader(), None
    if what == "loader" and concerned:
        train = Sleeping(own, stage.batches(), AT)
    if what == "save" and concerned:
        commit.watcher = reached
    trainer.train_model(train, val, num_train_steps=8)


if __name__ == "__main__":
    run(member.join(), *sys.argv[2:4], json.loads(sys.argv[4]))
    print("reached the end", flush=True)
