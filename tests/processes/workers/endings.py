"""What ends a run of processes against their will: one that cannot go on, or is gone.

Arguments: the folder, what happens, and to which process.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import disagree
import member
import probes

AT = 3
"""The step from which on it happens."""


class Settled(probes.Recorder):
    """A callback that is called only where every step is known to stand."""

    needs_settled_state = True


def breaks(own: member.Member, what: str) -> None:
    """Fails as a user's code would."""
    own.fails()
    raise ValueError(f"the {what} broke here")


def dies(own: member.Member) -> None:
    """Is killed, as by a system that has run out of memory."""
    own.fails()
    os.kill(os.getpid(), signal.SIGKILL)


def leaves(own: member.Member) -> None:
    """Ends the program in the middle of it."""
    own.fails()
    sys.exit(3)


def _in_hook(hook: str, act: Callable[[member.Member], None], settled: bool = False) -> Any:
    def callback(own: member.Member, concerned: bool) -> Any:
        def called(name: str, args: tuple[Any, ...]) -> None:
            if concerned and trainer_of[0].global_step >= AT:
                act(own)

        trainer_of: list[Any] = []

        def make(trainer: Any) -> probes.Recorder:
            trainer_of.append(trainer)
            return (Settled if settled else probes.Recorder)(trainer, called, (hook,))

        return make

    return callback


HOOKS = {
    "caught": _in_hook("on_validation_epoch_end", lambda own: breaks(own, "hook")),
    "validation_hook": _in_hook("on_validation_epoch_end", lambda own: breaks(own, "hook")),
    "settled_hook": _in_hook("on_training_step", lambda own: breaks(own, "hook"), settled=True),
    "epoch_hook": _in_hook("on_training_epoch_start", lambda own: breaks(own, "hook")),
    "exit": _in_hook("on_training_step", leaves),
    "kill": _in_hook("on_training_step", dies),
    "kill_in_validation": _in_hook("on_validation_epoch_start", dies),
}


class BrokenLog(probes.Memory):
    """A logger that cannot write the rows of a validation."""

    def __init__(self, own: member.Member) -> None:
        super().__init__()
        self.own = own

    def log_metrics(self, metrics: Any, step: int, mode: str, epoch: int) -> None:
        if mode == "val":
            breaks(self.own, "logger")


def run(own: member.Member, what: str, who: str) -> None:
    """Trains until it happens; but for one case nobody catches what is raised."""
    concerned = own.is_one_of(who)
    stage = disagree.Stage()
    callbacks = [HOOKS[what](own, concerned)] if what in HOOKS else []
    trainer = stage.begin(own, "run", *callbacks, check_val_every_n_steps=AT)
    trainer.train_model(stage.loader(), num_train_steps=1)  # what is measured compiles nothing
    train: Any = stage.loader()
    if what == "loader" and concerned:
        train = disagree.Breaking(own, stage.batches(), after=2)
    if what == "validation_logger" and concerned:
        trainer.logger = BrokenLog(own)
    if what == "outside":
        trainer.train_model(train, num_train_steps=AT)
        if concerned:
            time.sleep(0.5)
            breaks(own, "program")
    try:
        trainer.train_model(train, stage.loader(), num_epochs=400)
    except ValueError:
        if what != "caught":
            raise
        time.sleep(60)  # goes on with something else, while the others wait for it


if __name__ == "__main__":
    run(member.join(), *sys.argv[2:4])
    print("reached the end", flush=True)
