"""What does a step cost where the step itself costs nothing? A tiny network."""

from typing import Any

from benchmarks.against import Setting, make_trainer, train_in_turns
from benchmarks.bare import BareLoop, Step, plain_jit
from benchmarks.measure import Pairs, Row, interleave
from benchmarks.models import Task, mlp_task
from xtrainer import TrainerConfig

STEPS = 500
SCANNED = 32
NORMS = "The trainer logs two norms besides and writes files and TensorBoard events."

SAME = "same arithmetic"
GUARDED = "The hand-written step has norms, sums of metrics and a guard as well."


def noise(
    task: Task, steps: int, repeats: int, workload: str, step: Step | None = None, **row: Any
) -> Row:
    """Returns the bare loop against itself: what is smaller than this means nothing.

    Args:
        task: What is trained.
        steps: Steps of a turn.
        repeats: Turns that count.
        workload: For the row.
        step: Compiled; made where None.
        row: More of the row.
    """
    params = make_trainer(task, TrainerConfig(logger=None)).state.params
    step = step or plain_jit(task)
    first, second = (BareLoop(step, params, task.optimizer, task.batches) for _ in range(2))
    pairs = interleave(lambda: first.run(steps) / steps, lambda: second.run(steps) / steps, repeats)
    return pairs.row(workload, who="bare", **{"case": "noise", **row})


def settings(steps: int, repeats: int) -> dict[str, Setting]:
    """Returns the trainer's settings of each case."""
    no_norms = {"log_grad_norm": False, "log_param_norm": False}
    return {
        "log every 50": Setting(steps, repeats),
        "norms off": Setting(steps, repeats, options=no_norms),
        "progress bar": Setting(steps, repeats, bar=True),
        "log every step": Setting(steps, repeats, log_every=1),
        f"steps_per_dispatch={SCANNED}": scanned(steps, repeats),
    }


def guarded(task: Task, setting: Setting, workload: str, case: str = "", **row: Any) -> Row:
    """Returns the row against a loop that has norms, metrics and guard in its step as well."""
    pairs, _, _ = train_in_turns(task, setting, lambda params: BareLoop.guarded(task, params))
    case = f"{case}, {SAME}" if case else SAME
    return pairs.row(workload, case, note=GUARDED, **row)


def scanned(steps: int, repeats: int) -> Setting:
    """Returns the setting of scanned steps; a turn and a row are whole scans."""
    turn = max(1, steps // (2 * SCANNED)) * 2 * SCANNED
    return Setting(turn, repeats, log_every=2 * SCANNED, options={"steps_per_dispatch": SCANNED})


def measure(repeats: int, steps: int = STEPS) -> list[Row]:
    """Returns the noise and a row for each case."""
    task = mlp_task()
    rows = [noise(task, steps, repeats, "mlp")]
    for case, setting in settings(steps, repeats).items():
        pairs = compare(task, setting)
        rows.append(pairs.row("mlp", case, note=NORMS if case == "log every 50" else ""))
        if case != "norms off":
            rows.append(guarded(task, setting, "mlp", case))
    return rows


def compare(task: Task, setting: Setting) -> Pairs:
    """Returns seconds a step of trainer and plain loop."""
    return train_in_turns(task, setting, lambda params: BareLoop.of(task, params))[0]
