"""What does a batch of an evaluation cost? The slope between a short and a long loader."""

from benchmarks.against import make_trainer
from benchmarks.bare import evaluate
from benchmarks.lengths import LONG, NOTE, SHORT, compare
from benchmarks.measure import Row
from benchmarks.models import Task, mlp_task
from xtrainer import TrainerConfig


def measure(repeats: int, short: int = SHORT, long: int = LONG) -> list[Row]:
    """Returns a row for a batch and one for what an evaluation costs once."""
    task = mlp_task()
    trainer = make_trainer(task, TrainerConfig(logger=None, enable_progress_bar=False))
    run_bare, params = evaluate(task), trainer.state.params
    loaders = {length: task.loader(length) for length in (short, long)}
    return compare(
        lambda length: run_bare(params, loaders[length]),
        lambda length: trainer.eval_model(loaders[length]),
        repeats,
        short,
        long,
        note=NOTE,
    )


def results(task: Task, length: int) -> tuple[tuple[float, float], dict[str, float]]:
    """Returns what both sides find on the same batches, for a test that they agree."""
    trainer = make_trainer(task, TrainerConfig(logger=None, enable_progress_bar=False))
    bare = evaluate(task)(trainer.state.params, task.loader(length))
    return bare, trainer.eval_model(task.loader(length))
