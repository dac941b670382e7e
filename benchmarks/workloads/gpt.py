"""What does a step cost where the step itself takes tens of milliseconds? A small transformer."""

from benchmarks.against import Setting, train_in_turns
from benchmarks.bare import BareLoop
from benchmarks.measure import Row
from benchmarks.models import gpt_task
from benchmarks.workloads.mlp import guarded, noise

STEPS = 50
MS = {"unit": "ms/step", "scale": 1e3}


def measure(repeats: int, steps: int = STEPS, rows: int = 8, layers: int = 2) -> list[Row]:
    """Returns the noise, a row with and without norms, and one against the same arithmetic."""
    task = gpt_task(rows=rows, layers=layers)
    found = [noise(task, steps, repeats, "gpt", **MS)]
    no_norms = {"log_grad_norm": False, "log_param_norm": False}
    for case, options in (("log every 50", {}), ("norms off", no_norms)):
        setting = Setting(steps, repeats, options=options)
        pairs, _, _ = train_in_turns(task, setting, lambda params: BareLoop.of(task, params))
        found.append(pairs.row("gpt", case, **MS))
    found.append(guarded(task, Setting(steps, repeats), "gpt", "log every 50", **MS))
    return found
