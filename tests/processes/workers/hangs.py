"""What makes a run stand still: one process that goes on living and does not go on training.

Arguments: the folder, what happens, to which process, and fields of ``TrainerConfig`` as JSON.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import disagree
import member
import probes

from xtrainer.checkpoint import commit

AT = 3
"""The step from which on it happens."""
LONG_S = 100.0
PAUSE_S = 5
NAP_S = 4.5


def sleeps(own: member.Member) -> None:
    """Waits for something that does not come."""
    own.fails()
    time.sleep(LONG_S)


def naps(own: member.Member) -> None:
    """Waits once, for a little longer than it may."""
    if own.failed is None:
        own.fails()
        time.sleep(NAP_S)


def pauses(own: member.Member) -> None:
    """Is stopped, and goes on after a while."""
    again = f"sleep {PAUSE_S}; kill -CONT {os.getpid()}"
    subprocess.Popen(["sh", "-c", again])
    stops(own)


def stops(own: member.Member) -> None:
    """Is stopped, all threads of it."""
    own.fails()
    os.kill(os.getpid(), signal.SIGSTOP)


ACTS = {"callback": sleeps, "stopped": stops, "paused": pauses, "nap": naps}
MOMENTS = {"save": "meta", "save_start": "begun"}
"""Of a save, in which it hangs: in a thread of its own, and in that which trains."""


def run(own: member.Member, what: str, who: str, config: dict[str, Any]) -> None:
    """Trains until it happens."""
    concerned = own.is_one_of(who)
    stage = disagree.Stage(**config)

    def act(trainer: Any, *args: Any) -> None:
        if concerned and trainer.global_step == AT:
            ACTS[what](own)

    def reached(moment: str) -> None:
        if moment == MOMENTS[what]:
            # As a thread of a library would, for which Python waits at its end.
            threading.Thread(target=time.sleep, args=(LONG_S,)).start()
            sleeps(own)

    callbacks = [probes.acting("on_training_step", act)] if what in ACTS else []
    folder = own.folder / "run"
    trainer = stage.begin(own, "run", *callbacks, folder=folder)
    trainer.train_model(stage.loader(), num_train_steps=1)  # what is measured compiles nothing
    if what in MOMENTS and concerned:
        commit.watcher = reached
    trainer.train_model(stage.loader(), num_train_steps=8)


if __name__ == "__main__":
    run(member.join(), *sys.argv[2:4], json.loads(sys.argv[4]))
    print("reached the end", flush=True)
