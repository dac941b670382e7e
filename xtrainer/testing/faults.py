"""What can go wrong in a run? One function for each fault, planted in a process made for it.

A fault is asked for by whoever starts the process, as a value; nothing in an ordinary run looks for
one. When it comes it is noted in the journal of the process.
"""

import contextlib
import os
import random
import resource
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xtrainer.checkpoint import CheckpointManager, commit
from xtrainer.data import LoaderSource
from xtrainer.testing.witness import Witness, write_line
from xtrainer.trainer import TrainerModule

MOMENTS = ("begun", "meta", "arrays", "synced", "record")
"""Of a save that is no step yet, see ``xtrainer.checkpoint.commit.reached``."""

Note = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What goes wrong, and when.

    Attributes:
        kind: A key of ``FAULTS``; empty: nothing goes wrong.
        at: The step after which it comes, or the number of the save, from 1.
        count: Saves that it meets.
        moment: Of the save, one of ``MOMENTS``.
        place: Pass and number of the batch that it meets.
        seconds: How long something takes.
    """

    kind: str = ""
    at: int = -1
    count: int = 1
    moment: str = "begun"
    place: tuple[int, int] = (0, 0)
    seconds: float = 0.0


def plant(fault: Fault, journal: Path) -> None:
    """Lets a fault come in this process, whose experiment has not been run yet."""
    if fault.kind:
        file = open(journal, "a", encoding="utf-8")
        FAULTS[fault.kind](fault, lambda: write_line(file, {"kind": "fault", "at": time.time()}))


def kill(fault: Fault, note: Note) -> None:
    """SIGKILL after a step, as a loss of power."""
    _after_step(fault.at, signal.SIGKILL, note)


def preempt(fault: Fault, note: Note) -> None:
    """SIGTERM after a step, as from a scheduler that wants the machine back."""
    _after_step(fault.at, signal.SIGTERM, note)


def kill_in_save(fault: Fault, note: Note) -> None:
    """SIGKILL at a moment of a save."""

    def die(moment: str) -> None:
        note()
        os.kill(os.getpid(), signal.SIGKILL)

    _at_moment(fault, die)


def slow_save(fault: Fault, note: Note) -> None:
    """Some saves take longer than they should, as on a busy network."""

    def sleep(moment: str) -> None:
        note()
        time.sleep(fault.seconds)

    _at_moment(fault, sleep)


def disk_full(fault: Fault, note: Note) -> None:
    """No file can grow while some saves are under way; they must be in the foreground."""
    save = CheckpointManager.save

    def met(self: CheckpointManager, *args: Any, **kwargs: Any) -> None:
        if not 0 <= newest_save() - fault.at < fault.count:
            save(self, *args, **kwargs)
            return
        note()
        with full_disk():
            save(self, *args, **kwargs)

    CheckpointManager.save = met  # type: ignore[method-assign]
    newest_save = _count_saves()


def stall_loader(fault: Fault, note: Note) -> None:
    """The training loader takes its time for one batch."""

    def sleep(batch: Any) -> Any:
        note()
        time.sleep(fault.seconds)
        return batch

    _at_batch(fault, sleep)


def nan(fault: Fault, note: Note) -> None:
    """One batch holds NaN in all its floats; one without any makes the loss of its step NaN."""

    def poison(batch: Any) -> Any:
        note()
        return jax.tree.map(lambda x: np.full_like(x, np.nan) if _is_float(x) else x, batch)

    _at_batch(fault, poison)
    make = TrainerModule.create_training_step_function

    def create(self: TrainerModule, *args: Any) -> Callable[..., Any]:
        if any(map(_is_float, jax.tree.leaves(self.exmp_batch))):
            return make(self, *args)
        return _with_bad_loss(self, lambda: make(self, *args), fault.at)

    TrainerModule.create_training_step_function = create  # type: ignore[method-assign]


FAULTS: dict[str, Callable[[Fault, Note], None]] = {
    "kill": kill,
    "kill-in-save": kill_in_save,
    "preempt": preempt,
    "nan": nan,
    "disk-full": disk_full,
    "slow-save": slow_save,
    "stall-loader": stall_loader,
}
"""Each fault by the name under which it is asked for."""


def flip_bits(step_folder: Path, seed: int, count: int = 3) -> Path:
    """Turns some bits over in the largest file of a checkpoint's arrays, and returns the file."""
    files = [path for path in step_folder.rglob("*") if path.is_file() and path.suffix != ".json"]
    path = max(sorted(files), key=lambda file: file.stat().st_size)
    content, draw = bytearray(path.read_bytes()), random.Random(seed)
    for bit in draw.sample(range(8 * len(content)), count):
        content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    return path


@contextlib.contextmanager
def full_disk(limit: int = 2**10) -> Iterator[None]:
    """No file of this process may grow beyond ``limit`` bytes meanwhile, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _after_step(step: int, number: signal.Signals, note: Note) -> None:
    noted = Witness.on_training_step

    def watched(self: Witness, metrics: Any, epoch_idx: int, step_idx: int) -> None:
        noted(self, metrics, epoch_idx, step_idx)
        if step_idx == step:
            note()
            os.kill(os.getpid(), number)

    Witness.on_training_step = watched  # type: ignore[method-assign]


def _at_moment(fault: Fault, act: Callable[[str], None]) -> None:
    before, newest_save = commit.watcher, _count_saves()

    def watcher(moment: str) -> None:
        before(moment)
        if moment == fault.moment and 0 <= newest_save() - fault.at < fault.count:
            act(moment)

    commit.watcher = watcher


def _count_saves() -> Callable[[], int]:
    """Returns what gives the number of the newest save; several of one step are one."""
    save, steps = CheckpointManager.save, []

    def counted(self: CheckpointManager, step: int, *args: Any, **kwargs: Any) -> None:
        if step not in steps:
            steps.append(step)
        save(self, step, *args, **kwargs)

    CheckpointManager.save = counted  # type: ignore[method-assign]
    return lambda: len(steps)


def _at_batch(fault: Fault, change: Callable[[Any], Any]) -> None:
    pull = LoaderSource.pull

    def watched(self: LoaderSource, reader: object | None = None) -> Any:
        batch, position = pull(self, reader)
        if self.name == "train" and (position.pass_index, position.batches) == tuple(fault.place):
            batch = change(batch)
        return batch, position

    LoaderSource.pull = watched  # type: ignore[method-assign]


def _with_bad_loss(
    trainer: TrainerModule, make: Callable[[], Callable[..., Any]], at: int
) -> Callable[..., Any]:
    """Returns a training step whose loss is NaN at one step; it is selected, so that all others
    compute what they always did.
    """
    own, bad = trainer.loss_function, []

    def loss(*args: Any, **kwargs: Any) -> Any:
        value, rest = own(*args, **kwargs)
        whole = {} if not isinstance(value, dict) else value
        spoilt = jnp.asarray(whole.get("value", value))
        spoilt = jnp.where(bad[-1], jnp.asarray(jnp.nan, spoilt.dtype), spoilt)
        return ({**whole, "value": spoilt} if whole else spoilt), rest

    trainer.loss_function = loss  # type: ignore[method-assign]
    try:
        step = make()
    finally:
        del trainer.loss_function

    def train_step(state: Any, *args: Any) -> Any:
        bad.append(state.step == at - 1)  # counts the steps before this one
        try:
            return step(state, *args)
        finally:
            bad.pop()

    return train_step


def _is_float(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)
