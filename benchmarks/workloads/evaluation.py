"""What does a batch of an evaluation cost? The slope between a short and a long loader."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from benchmarks.against import make_trainer
from benchmarks.bare import evaluate
from benchmarks.measure import Pairs, Row, interleave, slopes
from benchmarks.models import Task, mlp_task
from xtrainer import TrainerConfig

SHORT, LONG = 100, 1100


def timed(run: Callable[[Any], Any], loader: Any) -> float:
    """Returns the seconds of an evaluation; its result is on the host then."""
    start = time.perf_counter()
    run(loader)
    return time.perf_counter() - start


def measure(repeats: int, short: int = SHORT, long: int = LONG) -> list[Row]:
    """Returns a row for a batch and one for what an evaluation costs once."""
    task = mlp_task()
    trainer = make_trainer(task, TrainerConfig(logger=None, enable_progress_bar=False))
    run_bare, params = evaluate(task), trainer.state.params
    loaders = {length: task.loader(length) for length in (short, long)}
    found: dict[int, list[Pairs]] = {short: [], long: []}
    for _ in range(repeats + 1):
        for length, loader in loaders.items():
            found[length].append(
                interleave(
                    lambda n=loader: timed(lambda given: run_bare(params, given), n),
                    lambda n=loader: timed(trainer.eval_model, n),
                    repeats=1,
                    warm_up=0,
                )
            )
    few, many = (joined(pairs[1:]) for pairs in found.values())  # the first of each compiles
    return rows_of_lengths(few, many, short, long)


def joined(parts: list[Pairs]) -> Pairs:
    """Returns several measurements as one."""
    bare = [value for part in parts for value in part.bare]
    return Pairs(bare, [value for part in parts for value in part.framework])


def rows_of_lengths(few: Pairs, many: Pairs, short: int, long: int) -> list[Row]:
    """Returns the rows of evaluations of two lengths: what is spent for each batch, and once."""
    each = Pairs(
        slopes(few.bare, many.bare, long - short),
        slopes(few.framework, many.framework, long - short),
    )
    once = Pairs(
        [a - short * b for a, b in zip(few.bare, each.bare, strict=True)],
        [a - short * b for a, b in zip(few.framework, each.framework, strict=True)],
    )
    note = "Both sides give mean loss and accuracy."
    return [
        each.row("evaluation", "a batch", "us/batch", note=note),
        replace(once.row("evaluation", "once for an evaluation", "us"), ratio=None),
    ]


def results(task: Task, length: int) -> tuple[tuple[float, float], dict[str, float]]:
    """Returns what both sides find on the same batches, for a test that they agree."""
    trainer = make_trainer(task, TrainerConfig(logger=None, enable_progress_bar=False))
    bare = evaluate(task)(trainer.state.params, task.loader(length))
    return bare, trainer.eval_model(task.loader(length))
