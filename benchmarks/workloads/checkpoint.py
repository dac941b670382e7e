"""What does a save cost? Training time lost, the longest stall of a step, and the restore."""

import contextlib
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

import xtrainer as xt
from benchmarks.against import (
    BenchTrainer,
    Setting,
    Turns,
    logged_trainer,
    make_trainer,
    turns_of,
)
from benchmarks.bare import BareLoop
from benchmarks.measure import Pairs, Row, interleave
from benchmarks.models import Task, ballast_task

SIZES_MB = (100, 1000)
TURN_S_PER_GB = 5.0
"""Seconds of a turn: longer than a save goes on in the background."""
NOTE = "Bare: the same state with Orbax alone, asynchronous, one step kept."
AHEAD = 2


class SavingLoop(BareLoop):
    """A hand-written loop that saves with Orbax alone at the beginning of every other turn.

    Attributes:
        manager: Orbax's own, which keeps one step as the trainer does.
        turns: Turns so far.
        stalls_s: The longest stall of a step in each of them.
    """

    manager: ocp.CheckpointManager
    stalls_s: list[float]
    turns: int = 0

    def open(self, folder: Path) -> None:
        """Opens the folder that is saved to."""
        options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=True)
        self.manager = ocp.CheckpointManager(folder, options=options)
        self.stalls_s = []

    @property
    def saved(self) -> dict[str, Any]:
        """What is saved."""
        return {"params": self.params, "opt_state": self.opt_state}

    def run(self, steps: int) -> float:
        """Takes a turn, which begins with a save where its number is even."""
        start = time.perf_counter()
        if self.turns % 2 == 0:
            self.manager.save(self.turns, args=ocp.args.StandardSave(self.saved))
        self.turns += 1
        times = [start]
        losses: list[Any] = []
        for _ in range(steps):
            self.params, self.opt_state, loss = self.step(
                self.params, self.opt_state, next(self.batches)
            )
            losses.append(loss)
            if len(losses) > AHEAD:
                losses.pop(0).block_until_ready()
            times.append(time.perf_counter())
        jax.block_until_ready(self.params)
        end = time.perf_counter()
        self.stalls_s.append(longest_stall(times))
        return end - start


def longest_stall(times: Sequence[float]) -> float:
    """Returns by how much the longest time between two of the moments exceeds the usual one.

    Example:
        >>> longest_stall([0.0, 4.0, 5.0, 6.0, 7.0])
        3.0
    """
    steps = [b - a for a, b in zip(times, times[1:], strict=False)]
    return max(steps) - statistics.median(steps)


@dataclass(frozen=True, kw_only=True)
class StallsConfig(xt.CallbackConfig):
    """Notes when each step was dispatched."""

    every_n_steps: int = 1
    """Steps between notes."""

    def create(self, trainer: Any, data_module: Any = None) -> "Stalls":
        """Returns the callback."""
        return Stalls(self, trainer, data_module)


class Stalls(xt.Callback):
    """See :class:`StallsConfig`."""

    def __init__(self, config: StallsConfig, trainer: Any, data_module: Any = None) -> None:
        super().__init__(config, trainer, data_module)
        self.times: list[float] = []

    def on_training_step(self, step_metrics: Any, epoch_idx: int, step_idx: int) -> None:
        """Notes the time."""
        self.times.append(time.perf_counter())


def in_turns(seconds: Sequence[float]) -> tuple[list[float], list[float]]:
    """Returns the values of turns with a save and of those after them.

    Left out are the first turn, which has no save, and the pair after it, which warms up.

    Example:
        >>> in_turns([0.0, 8.0, 1.0, 5.0, 2.0, 6.0, 3.0])
        ([5.0, 6.0], [2.0, 3.0])
    """
    return list(seconds[3::2]), list(seconds[4::2])


def lost(seconds: Sequence[float]) -> list[float]:
    """Returns by how much turns with a save took longer than the turns after them."""
    return [a - b for a, b in zip(*in_turns(seconds), strict=True)]


def stalls_of(turns: Turns, times: Sequence[float]) -> list[float]:
    """Returns the longest stall of a step in each of the trainer's turns.

    At the end of a turn all steps that are under way are waited for; that is no stall.
    """
    return [longest_stall([a, *(t for t in times if a < t < b)]) for a, b in turns.spans]


def steps_of_a_turn(task: Task, params: Any, seconds: float) -> int:
    """Returns how many steps take about so many seconds."""
    loop = BareLoop.of(task, params)
    loop.run(1)
    return max(4, round(seconds / (loop.run(3) / 3)))


def restores(trainer: BenchTrainer, loop: SavingLoop, repeats: int) -> Pairs:
    """Returns the seconds of ``load_model`` and of Orbax alone, which reads as many bytes."""
    loop.manager.wait_until_finished()
    template = jax.tree.map(ocp.utils.to_shape_dtype_struct, loop.saved)
    loop.params = loop.opt_state = None  # room for what is read

    def read() -> float:
        start = time.perf_counter()
        step = loop.manager.latest_step()
        found = loop.manager.restore(step, args=ocp.args.StandardRestore(template))
        jax.block_until_ready(found)
        return time.perf_counter() - start

    def load() -> float:
        start = time.perf_counter()
        trainer.load_model()
        jax.block_until_ready(trainer.state)
        return time.perf_counter() - start

    return interleave(read, load, repeats)


@contextlib.contextmanager
def trained(
    task: Task, repeats: int, turn_s: float
) -> Iterator[tuple[BenchTrainer, SavingLoop, Stalls]]:
    """Gives both sides after their turns; their checkpoints are removed afterwards."""
    probe = make_trainer(task, xt.TrainerConfig(logger=None))
    steps = steps_of_a_turn(task, probe.state.params, turn_s)
    del probe
    setting = Setting(steps, repeats, log_every=steps)
    saves = xt.ModelCheckpointConfig(every_n_steps=2 * steps)
    with (
        tempfile.TemporaryDirectory(prefix="xtrainer-benchmark-") as folder,
        logged_trainer(task, setting, saves, StallsConfig()) as trainer,
    ):
        loop, turns = SavingLoop.of(task, trainer.state.params), turns_of(trainer)
        loop.open(Path(folder))
        turns.attach(loop.run)
        # The first of both sides' turns is followed by pairs of one with a save and one without.
        total = 2 + 2 * (repeats + 1)
        trainer.train_model(task.loader(), num_train_steps=steps * total)
        yield trainer, loop, next(c for c in trainer.callbacks if isinstance(c, Stalls))
        loop.manager.close()


def measure(
    repeats: int, sizes: Sequence[int] = SIZES_MB, turn_s: float | None = None
) -> list[Row]:
    """Returns three rows for each size of the state, in megabytes."""
    rows = []
    for size in sizes:
        seconds = turn_s or max(1.0, TURN_S_PER_GB * size / 1000)
        with trained(ballast_task(size), repeats, seconds) as (trainer, loop, stalls):
            turns = turns_of(trainer)
            bare_stalls, _ = in_turns(loop.stalls_s[1:])
            stalled, _ = in_turns(stalls_of(turns, stalls.times))
            restored = restores(trainer, loop, repeats)
            for case, pairs in (
                ("time lost to a save", Pairs(lost(turns.other_s), lost(turns.trainer_s))),
                ("longest stall of a step", Pairs(bare_stalls, stalled)),
                ("restore", restored),
            ):
                rows.append(pairs.row("checkpoint", f"{size} MB, {case}", "s", 1.0, note=NOTE))
    return rows
