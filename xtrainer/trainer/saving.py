"""What does a checkpoint of a trainer hold, and how does a trainer take it back?"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from xtrainer.callbacks import EMA, Callback, ModelCheckpoint
from xtrainer.checkpoint import (
    CheckpointItems,
    checked_step,
    gather_meta,
    numerics,
    read_meta,
    restore_partial,
    restore_state,
)
from xtrainer.config import Config
from xtrainer.config.redact import redact
from xtrainer.counts import as_int
from xtrainer.data import batch_spec, encode_spec
from xtrainer.errors import CheckpointError, CheckpointNotFoundError, ConfigError
from xtrainer.loop import OpenRows
from xtrainer.optim import forget_average
from xtrainer.parallel import put_global
from xtrainer.state import Progress, TrainState
from xtrainer.trainer.rate import explained_factor
from xtrainer.trainer.shared import StepIndex, merge_loaders, own_data, own_position
from xtrainer.trainer.sources import Sources
from xtrainer.trainer.view import TrainerView
from xtrainer.types import JSON, HostMetrics

_LOG = logging.getLogger(__name__)

MODEL_PARTS = ("params", "mutable_variables")
"""What a model is, without the state of its training."""


def config_to_json(trainer: TrainerView) -> dict[str, JSON]:
    """Returns all configs of a trainer as they may be written: without secrets."""
    optimizer = trainer.optimizer_config
    saved = optimizer.to_dict() if isinstance(optimizer, Config) else None
    configs = {
        "trainer": trainer.trainer_config.to_dict(),
        "model": trainer.model_config.to_dict(),
        "optimizer": saved,  # a ready transformation has no JSON form
    }
    return redact(configs)


def gather_items(
    trainer: TrainerView,
    save_optimizer_state: bool,
    save_dataloader_state: bool,
    metrics: HostMetrics,
) -> CheckpointItems:
    """Returns what a checkpoint of the present step holds."""
    state = trainer.state if save_optimizer_state else trainer.state.replace(opt_state=())
    rows = trainer.row_keeper.open_rows()
    positions = trainer.sources.positions() if save_dataloader_state else {}
    own = {name: position.to_json() for name, position in positions.items()}
    data = trainer.sources.fingerprints() if save_dataloader_state else {}
    loaders, data = merge_loaders(own, data)
    meta = gather_meta(
        state,
        progress=trainer.progress.to_json(),
        loaders=loaders,
        callbacks={name: c.state_dict() for name, c in _named(trainer.callbacks)},
        config=config_to_json(trainer),
        batch_spec=encode_spec(batch_spec(trainer.exmp_batch)),
        mesh=trainer.mesh,
        metrics=metrics,
        loggers=rows.loggers,
        rows=rows.run,
        ledger=trainer.ledger.to_json(),
        data=data,
    )
    return CheckpointItems(state, meta)


def checkpoint_folder(trainer: TrainerView) -> Path:
    """Returns the folder that a trainer's checkpoints are in.

    Raises:
        CheckpointNotFoundError: If it has neither a checkpoint callback nor a run folder.
    """
    callback = checkpoint_callback(trainer)
    if callback is not None:
        return callback.folder
    if trainer.log_path is not None:
        return trainer.log_path
    raise CheckpointNotFoundError(
        "Found neither a ModelCheckpoint among the callbacks nor a log_path, expected one of them "
        "to say where checkpoints are. Add one, or use load_pretrained_model(path)."
    )


def checkpoint_callback(trainer: TrainerView) -> ModelCheckpoint | None:
    """Returns the first checkpoint callback, preferring one that monitors a metric."""
    found = [c for c in trainer.callbacks if isinstance(c, ModelCheckpoint)]
    return next((c for c in found if c.monitored is not None), found[0] if found else None)


def check_folders(callbacks: Sequence[Callback]) -> None:
    """Checks that no two checkpoint callbacks write to one folder.

    Raises:
        ConfigError: If two do; each would find the other's steps where it is about to save.
    """
    folders = [c.folder for c in callbacks if isinstance(c, ModelCheckpoint)]
    shared = {str(folder) for folder in folders if folders.count(folder) > 1}
    if shared:
        raise ConfigError(
            f"Found several ModelCheckpoint callbacks that save to {', '.join(sorted(shared))}, "
            "expected a folder for each. Set ModelCheckpointConfig(log_path=...), or use one of "
            "them: it keeps the best checkpoints and the newest."
        )


def check_averages(callbacks: Sequence[Callback]) -> None:
    """Checks that a model which was judged by averaged parameters is saved with the average.

    Raises:
        ConfigError: If the state of the optimizer, which holds it, is not saved.
    """
    saved = [c.config.save_optimizer_state for c in callbacks if isinstance(c, ModelCheckpoint)]
    if any(isinstance(c, EMA) for c in callbacks) and not all(saved):
        raise ConfigError(
            "callbacks: found EMAConfig beside ModelCheckpointConfig(save_optimizer_state=False), "
            "expected True: the average is part of the optimizer's state, and without it a "
            "checkpoint is not the model that was evaluated."
        )


def load_step(
    trainer: TrainerView, step_folder: Path, load_optimizer: bool, own: bool = False
) -> int:
    """Puts a checkpoint into a trainer; nothing of the trainer changes before all of it is read.

    With the optimizer a run goes on where it was: step, random numbers, progress, loader positions
    and callbacks. Without, the model is taken and training begins at step 0.

    Args:
        trainer: Takes it.
        step_folder: Of the checkpoint.
        load_optimizer: Take the state of training too.
        own: Whether the checkpoint is of this trainer's own run, whose rows it goes on with.

    Returns:
        The checkpoint's step.

    Raises:
        CheckpointError: If the checkpoint does not fit the trainer.
    """
    meta = read_meta(step_folder)
    has_optimizer = any(path.startswith("opt_state/") for path in meta["leaves"])
    wants = jax.tree.leaves(trainer.state.opt_state)
    if load_optimizer and (has_optimizer or not wants):
        if jax.process_count() == trainer.trainer_config.steps_per_dispatch == 1:
            # The step is compiled while the state is read.
            trainer.compiled_train_step.ahead(trainer.state, batch_spec(trainer.exmp_batch))
        with trainer.ledger.spent("restore"), explained_factor(trainer.state.opt_state):
            state = restore_state(step_folder, trainer.state)
        progress = Progress.from_json(meta["progress"])
        positions = {n: own_position(n, p) for n, p in meta["loaders"].items()}
        data = own_data(meta)
        _check_steps(step_folder, int(jax.device_get(state.step)), progress)
        rows = meta["rows"]
        history = rows.get("history") if isinstance(rows, Mapping) else None
        trainer.history.restore(history, progress.step, keep=own)
        trainer.state, trainer.progress = state, progress
        trainer.sources.restore_later(positions, meta["process_count"], data)
        load_callbacks(trainer.callbacks, meta["callbacks"])
        trainer.restored_rows = OpenRows(rows, meta["loggers"] if own else None)
        _compare_numerics(step_folder, meta, trainer.trainer_config.deterministic)
        if own:
            if not trainer.is_own_state:  # else the seconds saved are in part this process's own
                trainer.ledger.load_json(meta["ledger"])
            trainer.is_own_state = True
        else:
            trainer.ledger.steps_before = float(progress.step)
    else:
        if load_optimizer:
            _LOG.warning(
                "%s holds no optimizer state: training would begin at step 0.", step_folder
            )
        parts = restore_partial(step_folder, MODEL_PARTS, trainer.state)
        parts["opt_state"] = forget_average(trainer.state.opt_state, put_global)
        trainer.state = trainer.state.replace(**parts)
    return int(step_folder.name)


def delete_model(old: TrainState, kept: TrainState) -> None:
    """Frees the parameters and collections of a state that another one does not use."""
    keep = {id(leaf) for leaf in jax.tree.leaves(kept)}
    for leaf in jax.tree.leaves((old.params, old.mutable_variables)):
        if id(leaf) not in keep:
            leaf.delete()


def step_index(step_idx: StepIndex) -> StepIndex:
    """Returns -1 as ``"latest"``, and all else as it is, if it can be.

    Raises:
        CheckpointError: If it is no step, nor ``"latest"`` or ``"best"``.
    """
    step_idx = as_int(step_idx)
    return "latest" if type(step_idx) is int and step_idx == -1 else checked_step(step_idx)


def warn_not_found(error: CheckpointNotFoundError) -> None:
    """Says that nothing was loaded."""
    _LOG.warning("No checkpoint was loaded: %s", error)


def restore_sources(sources: Sources, meta: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Puts the given loaders where they were; a dictionary of sets is restored set by set.

    Args:
        sources: The loaders of the trainer.
        meta: Of the checkpoint.
        given: Loaders, or dictionaries of sets, by name.

    Raises:
        CheckpointError: If a training loader was given and its position was not saved.
    """
    saved = meta["loaders"]
    for name, loaders in given.items():
        sets = loaders if isinstance(loaders, Mapping) else {None: loaders}
        for key, loader in sets.items():
            full_name = name if key is None else f"{name}/{key}"
            if loader is None:
                continue
            if full_name in saved:
                position = own_position(full_name, saved[full_name])
                data = own_data(meta).get(full_name)
                sources.restore(loader, full_name, position, meta["process_count"], data)
            elif name == "train":
                raise CheckpointError(
                    f"The checkpoint holds the positions of {sorted(saved)}, expected 'train'. It "
                    "was saved with save_dataloader_state=False; leave train_loader out."
                )


def _named(callbacks: list[Callback]) -> list[tuple[str, Callback]]:
    names = [type(callback).__name__ for callback in callbacks]
    return [(f"{name}_{names[:i].count(name)}", callbacks[i]) for i, name in enumerate(names)]


def load_callbacks(callbacks: list[Callback], states: Mapping[str, Any]) -> None:
    """Gives the callbacks what was saved of those of the same names."""
    for name, callback in _named(callbacks):
        if name in states:
            callback.load_state_dict(states[name])


def _check_steps(step_folder: Path, step: int, progress: Progress) -> None:
    if progress.step != step:
        raise CheckpointError(
            f"{step_folder}: the state is at step {step} and the progress at step {progress.step}, "
            "expected one number. The checkpoint is damaged; use another step."
        )


def _compare_numerics(step_folder: Path, meta: Mapping[str, Any], deterministic: bool) -> None:
    config = meta["config"].get("trainer")
    was = isinstance(config, Mapping) and config.get("deterministic", False)
    saved = {**meta["numerics"], "deterministic": was}
    now = {**numerics(), "deterministic": deterministic}
    changed = [
        f"{name}: {saved[name]!r} then, {now[name]!r} now"
        for name in saved.keys() & now.keys()
        if saved[name] != now[name]
    ]
    if changed:
        _LOG.warning(
            "%s was saved under other settings, so the run will not go on exactly: %s.",
            step_folder, "; ".join(sorted(changed)),
        )  # fmt: skip
