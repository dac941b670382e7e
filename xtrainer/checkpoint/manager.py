"""How is a step written? Whole or not at all, in the background, and old ones removed after it."""

import copy
import logging
import operator
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import get_args

import jax

from xtrainer.checkpoint.backend import COMMIT_FILE, SAVE_ENTRIES, open_manager, start_save
from xtrainer.checkpoint.items import CheckpointItems, describe_leaves, float_to_json
from xtrainer.checkpoint.metadata import (
    METRIC_KEY,
    MODE_KEY,
    STEP_KEY,
    MonitorMode,
    best_of,
    is_step,
    list_steps,
    read_metric,
    step_of,
    steps_to_keep,
    write_rank,
)
from xtrainer.checkpoint.snapshot import HostCopy
from xtrainer.errors import CheckpointError, CheckpointNotFoundError

_log = logging.getLogger(__name__)
_REMOVED = ".removed"


class CheckpointManager:
    """Writes the steps of one run into one folder; the only writer there.

    A save that is still under way is no step: it appears in :meth:`all_steps` after the next
    :meth:`wait`, :meth:`save` or :meth:`close`, and an older step is removed only after that.

    Args:
        folder: Made if it is not there. What failed or killed saves left in it is removed.
        max_to_keep: Steps kept by rank, at least 1; the newest is kept besides. None keeps all.
        monitor_mode: Whether the best metric is the smallest or the largest; None ranks steps by
            newness.
        async_save: Return from :meth:`save` once the arrays are copied, and write meanwhile. On the
            CPU backend the copy is kept until :meth:`close` for the saves to come, so it takes the
            memory of one more state; where that is not free, saves do without and cost more time.

    Raises:
        CheckpointError: If an argument is wrong or the folder cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        max_to_keep: int | None = None,
        monitor_mode: MonitorMode | None = None,
        async_save: bool = True,
    ) -> None:
        if max_to_keep is not None and max_to_keep < 1:
            raise CheckpointError(
                f"max_to_keep: found {max_to_keep}, expected a number >= 1, or None for all."
            )
        if monitor_mode is not None and monitor_mode not in get_args(MonitorMode):
            raise CheckpointError(
                f"monitor_mode: found {monitor_mode!r}, expected 'min', 'max' or None."
            )
        self.folder = Path(folder).expanduser().resolve()
        self.max_to_keep = max_to_keep
        self.monitor_mode: MonitorMode | None = monitor_mode
        self.async_save = async_save
        self._pending: tuple[int, float | None] | None = None
        self._closed = False
        self._copy = HostCopy()
        self._remover = ThreadPoolExecutor(1, thread_name_prefix="remove-checkpoint")
        try:
            if _writes_files():
                self.folder.mkdir(parents=True, exist_ok=True)
                _clean(self.folder)
            self._manager = open_manager(self.folder, async_save)
        except OSError as error:
            raise CheckpointError(
                f"{self.folder}: found {error}, expected a folder that can be written. Choose "
                "another path for the run."
            ) from error
        self._metrics = {step: self._stored_metric(step) for step in list_steps(self.folder)}

    def save(self, step: int, items: CheckpointItems, metric: float | None = None) -> None:
        """Saves one step; the state may be donated as soon as this returns.

        Finishes the previous save first.

        Args:
            step: Larger than every step in the folder.
            items: What is saved.
            metric: The value steps are ranked by; NaN and infinities rank as none.

        Raises:
            CheckpointError: If the previous save failed, the step or a later one exists, or the
                state cannot be saved.
        """
        self._require_open()
        self.wait()
        step = self._check_step(step)
        value = None if metric is None else float(metric)
        if describe_leaves(items.state) != items.meta["leaves"]:  # also refuses donated arrays
            raise CheckpointError(
                "items: found meta that describes another state, expected the one that is saved. "
                "Call gather_meta with the same state."
            )
        record = {STEP_KEY: step, METRIC_KEY: float_to_json(value), MODE_KEY: self.monitor_mode}
        # A copy: the caller may go on changing what a background thread is about to write.
        meta = {**copy.deepcopy(items.meta), **record}
        try:
            with jax.transfer_guard("allow"):  # also called inside the guarded training loop
                state = self._copy.take(items.state) if self.async_save else items.state
                started = start_save(self._manager, step, state, meta)
        except Exception as error:
            raise self._failure(step, error) from error
        if not started:
            raise self._failure(step, "Orbax refused the step")
        self._pending = (step, value)
        if not self.async_save:
            self.wait()

    def rank(self, step: int, metric: float) -> None:
        """Gives a step that is saved already the metric it is ranked by.

        Finishes the save under way first.

        Raises:
            CheckpointNotFoundError: If there is no such step.
            CheckpointError: If the save under way failed, or the metric cannot be written.
        """
        self._require_open()
        self.wait()
        self.metric_of(step)
        try:
            if _writes_files():
                write_rank(self.folder / str(step), float(metric), self.monitor_mode)
        except OSError as error:
            raise CheckpointError(
                f"{self.folder}: the metric of step {step} could not be written ({error}), "
                "expected a folder that can be written. Check its free space and permissions."
            ) from error
        self._metrics[step] = float(metric)
        self._prune()

    def wait(self) -> None:
        """Finishes the save under way, if there is one, and removes steps that are not kept.

        Raises:
            CheckpointError: If that save failed; raised once, and the next save may work.
        """
        if self._pending is None:
            return
        step, value = self._pending
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            self._pending = None
            raise self._failure(step, error) from error
        self._pending = None
        if _writes_files() and not is_step(self.folder / str(step)):
            raise self._failure(step, "the finished save has no commit file")
        self._metrics[step] = value
        self._prune()

    def close(self) -> None:
        """Finishes the save under way and releases threads; a second call does nothing.

        Raises:
            CheckpointError: If that save failed.
        """
        if self._closed:
            return
        self._closed = True
        try:
            self.wait()
        finally:
            self._copy.free()
            self._remover.shutdown()
            self._manager.close()

    def __enter__(self) -> "CheckpointManager":
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except CheckpointError as failure:
            if error is None:
                raise
            error.add_note(f"Besides, a checkpoint was lost: {failure}")  # the first error wins

    def all_steps(self) -> list[int]:
        """Returns the committed steps in ascending order."""
        return sorted(self._metrics)

    def latest_step(self) -> int | None:
        """Returns the newest committed step, None where there is none."""
        return max(self._metrics, default=None)

    def best_step(self) -> int | None:
        """Returns the step with the best finite metric, None where no step has one."""
        return next(iter(best_of(self._metrics, self.monitor_mode)), None)

    def metric_of(self, step: int) -> float | None:
        """Returns the metric a step was saved with.

        Raises:
            CheckpointNotFoundError: If there is no such step.
        """
        if step not in self._metrics:
            raise CheckpointNotFoundError(
                f"{self.folder}: found no step {step}, expected one of {self.all_steps()}."
            )
        return self._metrics[step]

    def _require_open(self) -> None:
        if self._closed:
            raise CheckpointError(
                f"{self.folder}: found a closed manager, expected an open one. Make a new one."
            )

    def _check_step(self, step: int) -> int:
        step = operator.index(step)
        if step < 0:
            raise CheckpointError(f"step: found {step}, expected a number >= 0.")
        newer = [other for other in self.all_steps() if other >= step]
        if newer:
            raise CheckpointError(
                f"{self.folder}: found the steps {newer}, expected none at or after step {step}, "
                "which is about to be saved: they belong to another course of training. Train "
                "into another folder, or move these steps away."
            )
        if os.path.lexists(self.folder / str(step)):
            raise CheckpointError(
                f"{self.folder / str(step)}: found something that is not a checkpoint, expected "
                f"nothing where step {step} is about to be saved. Move it away."
            )
        return step

    def _failure(self, step: int, reason: BaseException | str) -> CheckpointError:
        """Frees the space of a failed save, which may be what the next one lacks."""
        self._copy.free()  # other writes of the same save may still be reading it
        if _writes_files():
            _remove_leftover(self.folder / str(step))
        if isinstance(reason, BaseException):
            reason = f"{type(reason).__name__}: {reason}"
        return CheckpointError(
            f"{self.folder}: the save of step {step} failed ({reason}), expected it to be written. "
            "Check the free space and the permissions of the folder; older steps are untouched."
        )

    def _stored_metric(self, step: int) -> float | None:
        try:
            return read_metric(self.folder / str(step), self.monitor_mode)
        except CheckpointError as error:
            _log.warning("Step %d counts as one without a metric: %s", step, error)
            return None

    def _prune(self) -> None:
        keep = steps_to_keep(self._metrics, self.max_to_keep, self.monitor_mode)
        for step in sorted(self._metrics.keys() - keep):
            if _writes_files():
                _remove_step(self.folder / str(step), self._remover)
            del self._metrics[step]


def _writes_files() -> bool:
    return jax.process_index() == 0


def _clean(folder: Path) -> None:
    """Removes what failed saves and interrupted removals left, and nothing else."""
    for path in folder.iterdir():
        if path.name.endswith(_REMOVED) and step_of(path.with_suffix("")) is not None:
            _remove_tree(path)
        elif step_of(path) is not None:
            _remove_leftover(path)


def _remove_leftover(path: Path) -> None:
    """Removes the folder of an unfinished save; a folder with anything else in it is left."""
    if path.is_symlink() or not path.is_dir() or (path / COMMIT_FILE).exists():
        return
    foreign = {entry.name for entry in path.iterdir()} - SAVE_ENTRIES
    if foreign:
        _log.warning("%s is not a checkpoint and holds %s: left alone", path, sorted(foreign))
    else:
        _remove_tree(path)


def _remove_step(path: Path, remover: ThreadPoolExecutor) -> None:
    """Removes a step; renamed first, so that a kill in between leaves no half step.

    The files go in the background, which for large ones takes as long as some steps of training.
    """
    removed = path.with_name(path.name + _REMOVED)
    try:
        os.replace(path, removed)
    except OSError as error:
        _log.warning("The old step %s could not be removed: %s", path, error)
    else:
        remover.submit(_remove_tree, removed)


def _remove_tree(path: Path) -> None:
    try:
        if path.is_symlink() or not path.is_dir():
            return
        shutil.rmtree(path)
    except OSError as error:
        _log.warning("%s could not be removed: %s", path, error)
