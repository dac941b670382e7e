"""How is a batch size tried? By the compiler's figures, then by steps on a copy of the state."""

import gc
import logging
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Protocol

import jax
import numpy as np

from xtrainer.counts import wanted_count
from xtrainer.data import batch_spec, num_rows, peek_ahead
from xtrainer.errors import ConfigError
from xtrainer.launch import gather_results
from xtrainer.step import StepSettings, TrainExecutor
from xtrainer.step.memory import measure_memory
from xtrainer.trainer import compiled
from xtrainer.trainer.batch_size import BatchSizeTable, BatchTrial, find_batch_size
from xtrainer.trainer.batches import BatchPreparer
from xtrainer.trainer.kept_state import kept_state
from xtrainer.trainer.memory import is_out_of_memory
from xtrainer.trainer.view import TrainerView
from xtrainer.types import BatchLike

_LOG = logging.getLogger(__name__)

MAX_CPU_ROWS = 512
"""The largest batch that is tried on a CPU where none is given: more rows make no step faster, and
there is no memory of a device that would end the search."""


class TunedTrainer(TrainerView, Protocol):
    """A trainer whose training step can be made anew."""

    def create_training_step_function(
        self, settings: StepSettings | None = None
    ) -> Callable[..., Any]:
        """Returns the pure training step."""
        ...


def tune(
    trainer: TunedTrainer,
    loader: Any = None,
    max_batch_size: int | None = None,
    max_trials: int = 20,
    halving_limit: int = 3,
    steps_per_trial: int = 3,
    memory_limit: int | None = None,
    on_improvement: Callable[[BatchTrial], None] | None = None,
) -> BatchSizeTable:
    """Does what :meth:`xtrainer.TrainerModule.tune_batch_size` says; the same on all processes."""
    numbers = {
        "max_batch_size": (max_batch_size, 1),
        "max_trials": (max_trials, 1),
        "halving_limit": (halving_limit, 0),
        "steps_per_trial": (steps_per_trial, 1),
        "memory_limit": (memory_limit, 1),
    }
    check_counts("tune_batch_size", numbers)
    example: list[BatchLike] = []

    def look() -> Any:
        example.append(_example(trainer, loader))
        return {
            "first": _first_rows(trainer, loader),
            "largest": _largest(trainer, loader, max_batch_size),
            "limit": _memory_limit(trainer) if memory_limit is None else memory_limit,
        }

    said: list[Any] = gather_results(look, "limits of a batch size")
    largest, limit = (
        min((one[name] for one in said if one[name] is not None), default=None)
        for name in ("largest", "limit")
    )
    unit = trainer.batch_layout.num_shards * trainer.trainer_config.gradient_accumulate_steps
    with kept_state(trainer) as make_state:

        def try_size(rows: int) -> BatchTrial:
            def make() -> Any:
                return asdict(_try(trainer, make_state, example[0], rows, steps_per_trial, limit))

            trial = _agreed(gather_results(make, f"trial of {rows} rows"))
            _LOG.info("A batch of %d rows: %s", rows, trial)
            return trial

        table = find_batch_size(
            try_size, said[0]["first"], unit, largest, max_trials, halving_limit, on_improvement
        )
    _ = table.best  # which raises where none fits
    return table


def check_counts(name: str, numbers: Mapping[str, tuple[Any, int]]) -> None:
    """Checks whole numbers that a function was given.

    Args:
        name: The function.
        numbers: For each argument its value, None for one that is not given, and the smallest.

    Raises:
        ConfigError: With all that cannot be.
    """
    problems = [
        f"{name}: found {argument}={value!r}, expected {wanted}."
        for argument, (value, least) in numbers.items()
        if value is not None and (wanted := wanted_count(value, least, sys.maxsize)) is not None
    ]
    if problems:
        raise ConfigError(problems)


def _try(
    trainer: TunedTrainer,
    make_state: Callable[[], Any],
    example: BatchLike,
    rows: int,
    steps: int,
    limit: int | None,
) -> BatchTrial:
    """Returns what this process finds of a size."""
    executor, prepare = training_parts(trainer)
    memory = seconds = None
    try:
        memory = _analysed(trainer, executor, example, rows)
        if limit is not None and memory is not None and memory > limit:
            reason = f"the compiler says that it takes more than the {limit:,} bytes of a device"
            return BatchTrial(rows, memory, None, False, reason)
        part = trainer.batch_layout.part_of(rows)
        prepare.begin(part)
        batch = prepare(_repeated(example, part))
        seconds = _step_seconds(executor, make_state(), batch, steps)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    if seconds is None:
        gc.collect()  # what the step has left, which the next trial needs
        return BatchTrial(rows, memory, None, False, "out of memory")
    return BatchTrial(rows, memory, rows / seconds)


def training_parts(trainer: TunedTrainer) -> tuple[TrainExecutor, BatchPreparer]:
    """Returns a step of its own: the trainer's must not know of the sizes that are tried."""
    settings, batch = trainer.step_settings(), batch_spec(trainer.exmp_batch)
    loss = (trainer.loss_function, trainer.model.apply)
    terms = compiled.loss_terms(*loss, settings, trainer.state, batch, train=True)
    return compiled.train_parts(
        trainer.create_training_step_function,
        terms,
        settings,
        trainer.batch_layout,
        trainer.trainer_config,
        trainer.state,
        batch,
    )


def _analysed(
    trainer: TunedTrainer, executor: TrainExecutor, example: BatchLike, rows: int
) -> int | None:
    """Returns the bytes of a device that the compiled step takes, where the compiler knows them."""
    layout = trainer.batch_layout

    def placed(x: Any) -> jax.ShapeDtypeStruct:
        shape = (rows, *x.shape[1:])
        return jax.ShapeDtypeStruct(shape, x.dtype, sharding=layout.sharding(rows))

    data = jax.tree.map(placed, batch_spec(example))
    program = executor.ahead(trainer.state, data)
    if program is None:  # uncompiled, to debug
        return None
    found = program.result()
    if found.memory_analysis() is None:
        return None
    return measure_memory(trainer.state, data, found, trainer.max_steps_in_flight).total


def _step_seconds(executor: TrainExecutor, state: Any, batch: Any, steps: int) -> float:
    """Returns the median of the seconds of a step, the first not counted."""
    seconds, window = [], executor.new_window()
    for _ in range(steps + 1):
        start = time.perf_counter()
        state, window, report = executor(state, batch, window)
        jax.block_until_ready((state, report))
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[1:]))


def _agreed(said: list[Any]) -> BatchTrial:
    """Returns what the processes have found together: what one cannot do none can."""
    trials = [BatchTrial(**one) for one in said]
    bad = next((trial for trial in trials if not trial.fits), None)
    if bad is not None:
        return bad
    slowest = min(trials, key=lambda one: one.examples_per_s or 0.0)
    memory = max((one.memory_bytes for one in trials if one.memory_bytes is not None), default=None)
    return BatchTrial(slowest.rows, memory, slowest.examples_per_s)


def _example(trainer: TunedTrainer, loader: Any) -> BatchLike:
    """Returns rows as they are trained on: of the example batch, or those that come next."""
    leaves = jax.tree.leaves(trainer.exmp_batch)
    if not any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves):
        return trainer.exmp_batch
    if loader is not None:
        try:
            batch = peek_ahead(trainer.sources.of(loader, "train"))  # which stays the next one
            if num_rows(batch):
                return batch
        except StopIteration:
            pass
    return jax.tree.map(lambda x: np.zeros((1, *x.shape[1:]), x.dtype), trainer.exmp_batch)


def _repeated(example: BatchLike, rows: int) -> BatchLike:
    """Returns as many rows as are asked for, the example's again and again."""
    chosen = np.arange(rows) % num_rows(example)
    return jax.tree.map(lambda x: np.asarray(x)[chosen], example)


def _first_rows(trainer: TunedTrainer, loader: Any) -> int:
    known = getattr(loader, "batch_size", None)
    return known if type(known) is int and known > 0 else num_rows(trainer.exmp_batch)


def _largest(trainer: TunedTrainer, loader: Any, asked: int | None) -> int | None:
    """Returns the most rows: those of the data, those asked for, on a CPU a few hundred."""
    sizes = (getattr(loader, name, None) for name in ("num_examples", "num_samples"))
    most = [asked, *(size for size in sizes if type(size) is int)]
    if asked is None and trainer.mesh.devices.flat[0].platform == "cpu":
        most.append(MAX_CPU_ROWS)
    return min((size for size in most if size is not None), default=None)


def _memory_limit(trainer: TunedTrainer) -> int | None:
    """Returns the bytes of a device of this process, the smallest; None where none says it."""
    devices = [d for d in trainer.mesh.devices.flat if d.process_index == jax.process_index()]
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in devices]
    return min((limit for limit in limits if limit), default=None)
