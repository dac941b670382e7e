"""What does a step cost where the parameters are in many arrays?"""

from collections.abc import Sequence
from typing import Any

from benchmarks.against import Setting, train_in_turns
from benchmarks.bare import BareLoop, Step, plain_jit
from benchmarks.measure import Row
from benchmarks.models import Task, leaves_task
from benchmarks.workloads.mlp import guarded, noise

TURN = {10: 500, 100: 200, 1000: 50}
"""Steps of a turn."""


def measure(repeats: int, leaves: Sequence[int] = tuple(TURN)) -> list[Row]:
    """Returns the noise and two rows for each number of arrays."""
    found = []
    for count in leaves:
        task, steps = leaves_task(count), TURN.get(count, 50)
        step = plain_jit(task)  # once: a thousand arrays compile for a while
        found.append(noise(task, steps, repeats, "leaves", step, case=f"{count} arrays, noise"))

        def make_bare(params: Any, task: Task = task, step: Step = step) -> BareLoop:
            return BareLoop(step, params, task.optimizer, task.batches)

        pairs, _, _ = train_in_turns(task, Setting(steps, repeats), make_bare)
        found.append(pairs.row("leaves", f"{count} arrays"))
        found.append(guarded(task, Setting(steps, repeats), "leaves", f"{count} arrays"))
    return found
