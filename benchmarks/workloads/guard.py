"""What share of a step is the guard against numbers that are not finite? With it and without.

Both sides are the trainer's own compiled step with its norms and metrics, called in a bare loop; in
one of them every step is believed, so that XLA drops the test and the selections.
"""

import itertools
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from benchmarks.against import BenchTrainer, make_trainer
from benchmarks.measure import Row, interleave
from benchmarks.models import Task, gpt_task, mlp_task
from xtrainer import TrainerConfig
from xtrainer.state import TrainState
from xtrainer.step import make_train_step
from xtrainer.step import train as step_file

STEPS = {"mlp": 500, "gpt": 50}
MS = {"unit": "ms/step", "scale": 1e3}
NOTE = "Both sides are the trainer's step; `bare` believes every step."


def believe(
    old: TrainState, new: TrainState, finite: jax.Array, *decide: Any
) -> tuple[TrainState, jax.Array]:
    """Takes every step; stands in the place of ``guard_step``."""
    return new.replace(step=old.step + 1, guard=old.guard), jnp.ones((), bool)


class StepLoop:
    """A trainer's compiled step, called again and again.

    Args:
        task: What is trained.
        trainer: Whose step it is; its state is copied.
        guard: What decides about a step.
    """

    def __init__(self, task: Task, trainer: BenchTrainer, guard: Callable[..., Any]) -> None:
        parts = (trainer.loss_function, trainer.model.apply, trainer.optimizer)
        step = make_train_step(*parts, trainer.step_settings())

        def call(state: TrainState, window: Any, batch: Any) -> tuple[TrainState, Any]:
            return step(state, batch, None, window)[:2]

        with mock.patch.object(step_file, "guard_step", guard):
            self.state = jax.tree.map(jnp.copy, trainer.state)
            _, window = jax.eval_shape(lambda s, b: step(s, b)[:2], self.state, task.batches[0])
            self.window = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), window)
            first = (self.state, self.window, task.batches[0])
            self._call = jax.jit(call, donate_argnums=(0, 1)).lower(*first).compile()
        self.batches = itertools.cycle(task.batches)

    def run(self, steps: int) -> float:
        """Takes some steps and returns their seconds, until the last of them has ended."""
        start = time.perf_counter()
        for _ in range(steps):
            self.state, self.window = self._call(self.state, self.window, next(self.batches))
        jax.block_until_ready((self.state, self.window))
        return time.perf_counter() - start


def loops(task: Task) -> tuple[StepLoop, StepLoop]:
    """Returns the step of a task without and with the guard."""
    trainer = make_trainer(task, TrainerConfig(logger=None))
    return StepLoop(task, trainer, believe), StepLoop(task, trainer, step_file.guard_step)


def measure(repeats: int, steps: dict[str, int] | None = None) -> list[Row]:
    """Returns a row for the tiny network and one for the small transformer."""
    rows = []
    cases = {"mlp": (mlp_task, {}), "gpt": (gpt_task, MS)}
    for case, (make, unit) in cases.items():
        without, guarded = loops(make())
        count = (steps or STEPS)[case]
        pairs = interleave(
            lambda loop=without, n=count: loop.run(n) / n,
            lambda loop=guarded, n=count: loop.run(n) / n,
            repeats,
        )
        rows.append(pairs.row("guard", case, note=NOTE, **unit))
    return rows
