"""How does a batch become larger while a run goes on? With the next pass, compiled ahead."""

import logging
from collections.abc import Callable, Sequence

import jax

from xtrainer.data import LoaderSource, batch_spec
from xtrainer.errors import ConfigError, LoaderError
from xtrainer.launch import is_main_process
from xtrainer.trainer.config import TrainerConfig
from xtrainer.trainer.view import TrainerView
from xtrainer.types import ResizableLoader

_LOG = logging.getLogger(__name__)


def changes_batch_size(config: TrainerConfig) -> bool:
    """Says whether anything in a run may change the size of its batches."""
    return any(callback.changes_batch_size for callback in config.callbacks)


def train_batch_size(trainer: TrainerView) -> int:
    """Returns the rows of a full batch of the training pass under way, of all processes.

    Raises:
        ConfigError: If the training loader cannot change them.
    """
    return _resizable(_source(trainer)).batch_size


def check_batch_sizes(trainer: TrainerView, sizes: Sequence[int]) -> None:
    """Checks that training can meet some batch sizes, and tells which they are.

    Raises:
        ConfigError: Listing all that cannot be, and why.
    """
    source = _source(trainer)
    loader, problems = _resizable(source), []
    parts = trainer.trainer_config.gradient_accumulate_steps * trainer.batch_layout.num_shards
    before = loader.batch_size
    for rows in sizes:
        if rows % parts:
            problems.append(
                f"batch size: found {rows} among those to come ({', '.join(map(str, sizes))}), "
                f"expected multiples of {parts} (gradient_accumulate_steps times "
                f"{trainer.batch_layout.num_shards} devices that share a batch)."
            )
            continue
        try:
            loader.set_batch_size(rows)
        except LoaderError as error:
            problems.append(f"batch size: {error}")
    loader.set_batch_size(before)  # the pass under way keeps its size in any case
    source.on_new_pass = _nothing
    if problems:
        raise ConfigError(problems)
    if sizes and is_main_process():
        _LOG.info("Batches have %d rows, and may come to have %s.", before,
                  ", ".join(map(str, sizes)))  # fmt: skip


def set_batch_size(trainer: TrainerView, rows: int, begun: Callable[[int], None]) -> None:
    """Makes batches larger or smaller from the next pass on; the step is compiled meanwhile.

    Args:
        trainer: Trains, or is about to.
        rows: Of a full batch, of all processes; those of the pass under way: it stays so.
        begun: Called with ``rows`` when the first pass of that size begins; the step before
            it was dispatched.

    Raises:
        ConfigError: If the training loader cannot change them.
        LoaderError: If there can be no such batches.
    """
    source = _source(trainer)
    loader = _resizable(source)
    loader.set_batch_size(rows)
    if rows == loader.batch_size:
        source.on_new_pass = _nothing
        return

    def begin_pass() -> None:
        source.on_new_pass = _nothing
        begin_with_size(trainer, rows)
        _compile_ahead(trainer, rows)  # where that was asked for before anything was compiled
        begun(rows)

    source.on_new_pass = begin_pass
    _compile_ahead(trainer, rows)


def _compile_ahead(trainer: TrainerView, rows: int) -> None:
    """Begins to compile the step for larger batches, for as many steps in a call as so far."""
    executor, spec = trainer.compiled_train_step, jax.ShapeDtypeStruct
    batch = jax.tree.map(
        lambda x: spec((rows, *x.shape[1:]), x.dtype), batch_spec(trainer.exmp_batch)
    )
    for steps in sorted(executor.programs.steps, reverse=True):
        executor.ahead(trainer.state, batch, steps)


def begin_with_size(trainer: TrainerView, rows: int | None = None) -> None:
    """Lets what prepares batches begin with full ones of so many rows, or of the loader's.

    Not while batches are read ahead.
    """
    rows = train_batch_size(trainer) if rows is None else rows
    count = trainer.sources.shard.count
    trainer.prepare_train_batch.begin(rows // count, batch_spec(trainer.exmp_batch))


def _source(trainer: TrainerView) -> LoaderSource:
    source = trainer.sources.current("train")
    if source is None:
        raise ConfigError(
            "The batch size was to be changed before there is a training loader, expected that "
            "from on_training_start on."
        )
    return source


def _resizable(source: LoaderSource) -> ResizableLoader:
    loader = source.loader
    if not isinstance(loader, ResizableLoader):
        raise ConfigError(
            f"The batch size is to change, and the training loader ({type(loader).__name__}) has "
            "no set_batch_size(). Give it that and batch_size, see xtrainer.types.ResizableLoader, "
            "or use an ArrayLoader or a GrainLoader."
        )
    return loader


def _nothing() -> None:
    pass
