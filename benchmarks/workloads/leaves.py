"""What does a step cost where the parameters are in many arrays?"""

from collections.abc import Sequence

from benchmarks.against import Setting, train_in_turns
from benchmarks.bare import BareLoop
from benchmarks.measure import Row
from benchmarks.models import leaves_task
from benchmarks.workloads.mlp import noise

TURN = {10: 500, 100: 200, 1000: 50}
"""Steps of a turn."""


def measure(repeats: int, leaves: Sequence[int] = tuple(TURN)) -> list[Row]:
    """Returns the noise and a row for each number of arrays."""
    found = []
    for count in leaves:
        task, steps = leaves_task(count), TURN.get(count, 50)
        found.append(noise(task, steps, repeats, "leaves", case=f"{count} arrays, noise"))
        setting = Setting(steps, repeats)
        pairs, _, _ = train_in_turns(task, setting, lambda params, t=task: BareLoop.of(t, params))
        found.append(pairs.row("leaves", f"{count} arrays"))
    return found
