"""How long does a save hold up training? Beside a copy to host memory, and one that is awaited."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from benchmarks.against import make_trainer
from benchmarks.measure import Row, interleave
from benchmarks.models import Task
from xtrainer import TrainerConfig
from xtrainer.checkpoint import CheckpointItems, CheckpointManager, fingerprints, gather_meta

STEPS_OF_A_SAVE = 100
COPY = "Bare: a copy of every array into host memory that is there already."
SYNC = "Both sides wait for the disk; xtrainer syncs, reads again and checksums every file besides."
PRINTS = f"Bare: {STEPS_OF_A_SAVE} steps, after which a save is due."


def seconds_of(function: Callable[[], Any]) -> float:
    """Returns how long a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def is_key(leaf: jax.Array) -> bool:
    """Says whether a leaf holds random keys, which have no buffer of their own on the host."""
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def copier(state: Any) -> Callable[[], None]:
    """Returns what copies a state into host memory of its own, again and again."""
    leaves = [x for x in jax.tree.leaves(state) if not is_key(x)]
    places = [np.array(leaf) for leaf in leaves]

    def copy() -> None:
        for leaf, place in zip(leaves, places, strict=True):
            np.copyto(place, np.asarray(leaf))

    return copy


def items_of(trainer: Any) -> CheckpointItems:
    """Returns what a checkpoint of a trainer holds."""
    return CheckpointItems(
        trainer.state,
        gather_meta(
            trainer.state,
            progress={},
            loaders={},
            callbacks={},
            config={},
            batch_spec={},
            mesh=trainer.mesh,
            metrics={},
        ),
    )


class Saver:
    """Saves the same state as one step after the other.

    Args:
        folder: Of the checkpoints.
        items: What is saved.
        async_save: Whether a save is not waited for.
    """

    def __init__(self, folder: Path, items: CheckpointItems, async_save: bool) -> None:
        self.items, self.step = items, 0
        self.manager = CheckpointManager(folder, max_to_keep=1, async_save=async_save)

    def save(self) -> float:
        """Returns how long a save has held up the caller; one under way is waited for before."""
        self.manager.wait()
        self.step += 1
        return seconds_of(lambda: self.manager.save(self.step, self.items))


def orbax_saver(folder: Path, state: Any) -> Callable[[], None]:
    """Returns what saves a state with Orbax alone and waits for it."""
    options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
    manager, steps = ocp.CheckpointManager(folder, options=options), iter(range(10**6))
    saved = {"params": state.params, "opt_state": state.opt_state}
    return lambda: manager.save(next(steps), args=ocp.args.StandardSave(saved)) and None


def rows_of_blocking(task: Task, megabytes: int, repeats: int, step_s: float) -> list[Row]:
    """Returns how long a save blocks, how long it takes, and the share of fingerprints.

    Args:
        task: Gives the state.
        megabytes: Of it, for the names of the rows.
        repeats: Pairs that count.
        step_s: Seconds of a step of the trainer.
    """
    trainer = make_trainer(task, TrainerConfig(logger=None))
    state, items = trainer.state, items_of(trainer)
    name = f"{megabytes} MB"
    with tempfile.TemporaryDirectory(prefix="xtrainer-benchmark-") as folder:
        copy, quick = copier(state), Saver(Path(folder, "quick"), items, True)
        blocked = interleave(lambda: seconds_of(copy), quick.save, repeats)
        quick.manager.close()
        by_hand = orbax_saver(Path(folder, "orbax"), state)
        slow = Saver(Path(folder, "slow"), items, False)
        waited = interleave(lambda: seconds_of(by_hand), slow.save, repeats)
        slow.manager.close()
    found = interleave(
        lambda: STEPS_OF_A_SAVE * step_s, lambda: seconds_of(lambda: fingerprints(state)), repeats
    )
    return [
        blocked.row("checkpoint", f"{name}, save() blocks", "s", 1.0, note=COPY),
        waited.row("checkpoint", f"{name}, save that is waited for", "s", 1.0, note=SYNC),
        found.row("checkpoint", f"{name}, fingerprints", "s", 1.0, note=PRINTS),
    ]
