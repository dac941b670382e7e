"""What does a step cost on several devices? Data parallel, the state on each of them."""

import jax

from benchmarks.against import Setting, train_in_turns
from benchmarks.bare import BareLoop, data_parallel_jit, plain_step
from benchmarks.measure import Row
from benchmarks.models import Task, gpt_task, mlp_task

AHEAD = 2
NOTE = "Both sides keep at most two steps in flight: more would abort a run on CPU devices."


def make_loop(task: Task, params: object) -> BareLoop:
    """Returns a hand-written data-parallel loop."""
    step = data_parallel_jit(plain_step(task))
    return BareLoop(step, params, task.optimizer, task.batches, ahead=AHEAD)


def measure(repeats: int, steps: int = 100, large_steps: int = 20) -> list[Row]:
    """Returns a row for the tiny network and one for the transformer."""
    count = len(jax.devices())
    found = []
    for name, task, turn, unit, scale in (
        ("tiny network", mlp_task(rows=8 * count), steps, "us/step", 1e6),
        ("transformer", gpt_task(rows=2 * count), large_steps, "ms/step", 1e3),
    ):
        setting = Setting(turn, repeats, log_every=min(50, turn), all_devices=True)
        pairs, _, _ = train_in_turns(task, setting, lambda params, t=task: make_loop(t, params))
        case = f"{name}, {count} devices"
        found.append(pairs.row("devices", case, unit, scale, note=NOTE))
    return found
