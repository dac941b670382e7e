"""What does accumulation over micro-batches cost against a hand-written scan? Time and memory."""

from typing import Any

import jax

from benchmarks.against import BenchTrainer, Setting, make_trainer, train_in_turns
from benchmarks.bare import BareLoop, memory_of, plain_step, scan_step
from benchmarks.measure import Row, Spread
from benchmarks.models import Task, gpt_task
from xtrainer import TrainerConfig

PIECES = 8
STEPS = 50


def make_loop(task: Task, params: Any, pieces: int) -> BareLoop:
    """Returns a hand-written loop that accumulates."""
    step = jax.jit(scan_step(task, pieces), donate_argnums=(0, 1))
    return BareLoop(step, params, task.optimizer, task.batches)


def trainer_bytes(trainer: BenchTrainer, batch: Any) -> int | None:
    """Returns what the trainer's compiled step takes for a batch."""
    return memory_of(trainer.compiled_train_step.lower(trainer.state, batch).compile())


def bare_bytes(task: Task, params: Any, batch: Any, pieces: int) -> int | None:
    """Returns what a hand-written compiled step takes for a batch."""
    step = plain_step(task) if pieces == 1 else scan_step(task, pieces)
    shapes = jax.eval_shape(task.optimizer.init, params)
    return memory_of(jax.jit(step, donate_argnums=(0, 1)).lower(params, shapes, batch).compile())


def memory(task: Task, pieces: int = PIECES) -> list[Row]:
    """Returns rows for arguments and temporaries, against a step of one micro-batch and of all."""
    whole = task.batches[0]
    part = jax.tree.map(lambda x: x[: len(x) // pieces], whole)
    config = TrainerConfig(logger=None, gradient_accumulate_steps=pieces)
    one = make_trainer(task, TrainerConfig(logger=None))
    many = trainer_bytes(make_trainer(task, config), whole)
    params = one.state.params
    many_bare = bare_bytes(task, params, whole, pieces)
    rows = []
    for case, batch in (("one micro-batch", part), ("the whole batch at once", whole)):
        bare, ours = bare_bytes(task, params, batch, 1), trainer_bytes(one, batch)
        case = f"memory / {case}"
        if None in (bare, ours, many, many_bare):
            rows.append(Row("accumulate", case, note="not available: the backend does not say"))
            continue
        x, y = many_bare / bare, many / ours
        spreads = [Spread(v, v, v) for v in (x, y, y - x, y / x)]
        note = "Columns bare and framework: bytes with accumulation / bytes without."
        rows.append(Row("accumulate", case, "ratio", *spreads, note=note))
    return rows


def measure(repeats: int, steps: int = STEPS, rows: int = 16, layers: int = 2) -> list[Row]:
    """Returns time and memory of accumulation over eight micro-batches."""
    task = gpt_task(rows=rows, layers=layers)
    setting = Setting(steps, repeats, options={"gradient_accumulate_steps": PIECES})
    pairs, _, _ = train_in_turns(task, setting, lambda params: make_loop(task, params, PIECES))
    case = f"{PIECES} micro-batches, log every 50"
    return [pairs.row("accumulate", case, "ms/step", 1e3), *memory(task)]
