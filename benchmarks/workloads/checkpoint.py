"""What does a save cost? Training time lost, the longest stall of a step, and the restore."""

import contextlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

import xtrainer as xt
from benchmarks.against import (
    BenchTrainer,
    Setting,
    logged_trainer,
    make_trainer,
    turns_of,
)
from benchmarks.bare import BareLoop
from benchmarks.blocking import rows_of_blocking
from benchmarks.measure import Row
from benchmarks.models import Task, ballast_task
from benchmarks.saving import (
    SavingLoop,
    longest_stall,
    lost,
    moments_of,
    row_of_restores,
    rows_of_saves,
    seconds_of_a_turn,
    steps_of_a_turn,
    turns_of_all,
)

SIZES_MB = (100, 1000)
NOTE = "Bare: the same state with Orbax alone, asynchronous, one step kept."


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


@contextlib.contextmanager
def trained(
    task: Task, repeats: int, turn_s: float
) -> Iterator[tuple[BenchTrainer, SavingLoop, Stalls]]:
    """Gives both sides after their turns; their checkpoints are removed afterwards."""
    probe = make_trainer(task, xt.TrainerConfig(logger=None))
    steps = steps_of_a_turn(BareLoop.of(task, probe.state.params).run, turn_s)
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
        trainer.train_model(task.loader(), num_train_steps=steps * turns_of_all(repeats))
        yield trainer, loop, next(c for c in trainer.callbacks if isinstance(c, Stalls))
        loop.close()


def measure(
    repeats: int, sizes: Sequence[int] = SIZES_MB, turn_s: float | None = None
) -> list[Row]:
    """Returns six rows for each size of the state, in megabytes."""
    rows = []
    for size in sizes:
        seconds = turn_s or seconds_of_a_turn(size)
        with trained(ballast_task(size), repeats, seconds) as (trainer, loop, stalls):
            turns = turns_of(trainer)
            seconds_lost = lost(turns.other_s), lost(turns.trainer_s)
            stalled = [longest_stall(moments) for moments in moments_of(turns.spans, stalls.times)]
            rows += rows_of_saves(size, seconds_lost, (loop.stalls_s[1:], stalled), note=NOTE)
            loop.make_room()

            def load(trainer: BenchTrainer = trainer) -> None:
                trainer.load_model()
                jax.block_until_ready(trainer.state)

            rows.append(row_of_restores(size, loop.read, load, repeats, note=NOTE))
            step_s = min(turns.trainer_s) / turns.config.every_n_steps
        rows += rows_of_blocking(ballast_task(size), size, repeats, step_s)
    return rows
