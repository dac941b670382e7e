"""Scenarios in which an error of ``train_exceptions`` is raised on all processes, or on some.

A scenario is named ``WHERE-WHO``; WHO are the numbers of the processes that raise it.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import disagree
import member
import probes

AT = 5
"""The step after which it is raised."""


class Enough(Exception):
    """What the run may end with."""


class Ending(disagree.Breaking):
    """A loader that raises it instead of a batch."""

    def __iter__(self) -> Any:
        yield from self.batches[: self.after]
        raise Enough("data")


def run(stage: disagree.Stage, name: str) -> Callable[[member.Member], Any]:
    where, who = name.split("-")

    def scenario(own: member.Member) -> Any:
        concerned = own.is_one_of(who)

        def act(trainer: Any, *args: Any) -> None:
            if concerned and trainer.global_step >= AT:
                raise Enough(where)

        callbacks = [probes.acting("on_training_step", act)] if where == "hook" else []
        trainer = stage.begin(own, name, *callbacks)
        trainer.trainer_config = replace(trainer.trainer_config, train_exceptions=(Enough,))
        batches = stage.batches()
        loader: Any = Ending(own, batches, 3) if where == "loader" and concerned else batches
        return disagree.train(own, trainer, name, loader)

    return scenario


if __name__ == "__main__":
    own, stage = member.join(), disagree.Stage()
    for name in sys.argv[2:]:
        own.record(name, own.play(name, run(stage, name)))
