"""Mistakes that are made on purpose, so that it is seen which test finds them.

With ``CHAOS_MUTANT`` set to a name, the jobs make the mistake; with ``-p mutants`` pytest does.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

from xtrainer.checkpoint import commit, manager, metadata, usable
from xtrainer.errors import CheckpointWriteError
from xtrainer.trainer.sources import Sources

VARIABLE = "CHAOS_MUTANT"


def no_sync() -> None:
    """Leaves it to the system when a step comes to the disk."""
    commit.sync_tree = lambda folder: None


def no_check() -> None:
    """Takes every step for whole."""
    usable.problems_of = lambda folder: []


def produced() -> None:
    """Saves where the loader has read to, not what the steps have taken of it."""
    consumed = Sources.positions

    def positions(self: Sources) -> dict[str, Any]:
        found = consumed(self)
        ahead: Any = self._current["train"].loader
        return {**found, "train": dataclasses.replace(found["train"], state=ahead.get_state())}

    Sources.positions = positions  # type: ignore[method-assign]


def best_is_nan() -> None:
    """Ranks what is not a number before all numbers."""
    ranked = metadata.best_of

    def best_of(metrics: Mapping[int, float | None], mode: Any) -> list[int]:
        bad = [step for step, value in metrics.items() if value is not None and math.isnan(value)]
        return bad + ranked(metrics, mode)

    metadata.best_of = manager.best_of = best_of


def swallowed() -> None:
    """Lets nobody know that a save in the background has failed."""
    wait = manager.CheckpointManager.wait

    def silent(self: manager.CheckpointManager) -> Any:
        try:
            return wait(self)
        except CheckpointWriteError:
            return True

    manager.CheckpointManager.wait = silent  # type: ignore[method-assign]
    manager.CheckpointManager.when_failed = lambda self, call: None  # type: ignore[method-assign]


MUTANTS: dict[str, Callable[[], None]] = {
    "no_sync": no_sync,
    "no_check": no_check,
    "produced": produced,
    "best_is_nan": best_is_nan,
    "swallowed": swallowed,
}


def apply() -> None:
    """Makes the mistake that the environment names, if it names one."""
    name = os.environ.get(VARIABLE)
    if name:
        MUTANTS[name]()


def pytest_configure() -> None:
    """Makes it in the process of the tests."""
    apply()
