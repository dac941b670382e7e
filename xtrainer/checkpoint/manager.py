"""How is a step written? Whole or not at all, in the background, and old ones removed after it."""

import copy
import functools
import os
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import get_args

import jax

from xtrainer.checkpoint.backend import ArrayWriter
from xtrainer.checkpoint.background import Background
from xtrainer.checkpoint.commit import RunId, begin_attempt, reached, require_newest
from xtrainer.checkpoint.durable import free_space
from xtrainer.checkpoint.fingerprint import start_fingerprints
from xtrainer.checkpoint.items import (
    CheckpointItems,
    describe_leaves,
    float_from_json,
    float_to_json,
)
from xtrainer.checkpoint.metadata import (
    METRIC_KEY,
    MODE_KEY,
    STEP_KEY,
    MonitorMode,
    best_of,
    read_metrics_of_steps,
    steps_to_keep,
    write_rank,
)
from xtrainer.checkpoint.removal import (
    Remover,
    clean,
    remove_left,
    remove_tree,
    saving_folder,
    set_aside,
    supersede,
)
from xtrainer.checkpoint.snapshot import HostCopy
from xtrainer.checkpoint.under_way import Save, Saved
from xtrainer.counts import as_int, wanted_count
from xtrainer.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    CheckpointWriteError,
    NewerAttemptError,
)
from xtrainer.launch import broadcast, gather, is_main_process
from xtrainer.launch.exchange import DEFAULT_TIMEOUT_S
from xtrainer.launch.waits import LONG_S
from xtrainer.tree import num_bytes
from xtrainer.types import JSON

_GRACE_S, _REMOVING_S = 5.0, 60.0


class CheckpointManager:
    """Writes the steps of one run into one folder; the only writer there.

    A save under way is no step: it appears in :meth:`all_steps` after the next :meth:`wait`,
    :meth:`save` or :meth:`close`, and an older step is removed only after that. Every process of a
    run makes one and calls it alike.

    Args:
        folder: Made if it is not there. What failed or killed saves left in it is removed.
        max_to_keep: Steps kept by rank, at least 1; the newest two are kept besides, so that there
            is one to fall back to. None keeps all.
        monitor_mode: Whether the best metric is the smallest or the largest; None ranks steps by
            newness.
        async_save: Return from :meth:`save` once the arrays are copied, and write meanwhile. On the
            CPU backend the copy is kept until :meth:`close` for the saves to come, so it takes the
            memory of one more state; where that is not free, saves do without and cost more time.
        save_timeout_s: Seconds after which a save that is not written has failed; <= 0: never.
        on_saved: Called by another thread as soon as a save is committed or has failed.

    Raises:
        CheckpointError: If an argument is wrong or the folder cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        max_to_keep: int | None = None,
        monitor_mode: MonitorMode | None = None,
        async_save: bool = True,
        save_timeout_s: float = 1800.0,
        on_saved: Callable[[Saved], None] | None = None,
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
        self._limit_s = save_timeout_s if save_timeout_s > 0 else LONG_S
        self._on_saved = on_saved
        self._save: Save | None = None
        self._closed = False
        self._needed = 0
        self._failed: list[Path] = []
        self._copy = HostCopy()
        self._metrics, self._run = self._open()
        self._begin_threads()
        self._remover = Remover()

    def _begin_threads(self) -> None:
        self._arrays = ArrayWriter(self._limit_s)
        self._committer = Background("commit-checkpoint")

    def _open(self) -> tuple[dict[int, float | None], RunId]:
        """Returns the metric of each step in the folder, and the run; the main process looks."""
        found: dict[str, JSON] = {}
        if is_main_process():
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                clean(self.folder)
                run = begin_attempt(self.folder)
                metrics = read_metrics_of_steps(self.folder, self.monitor_mode)
                found = {
                    "run": asdict(run),
                    "metrics": [[step, float_to_json(m)] for step, m in metrics.items()],
                }
            except OSError as error:
                found = {"error": str(error)}
        found = broadcast(found, f"steps in {self.folder}")
        if "error" in found:
            raise CheckpointError(
                f"{self.folder}: found {found['error']}, expected a folder that can be written. "
                "Choose another path for the run."
            )
        metrics = {int(step): float_from_json(metric) for step, metric in found["metrics"]}
        return metrics, RunId(**found["run"])

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
            NewerAttemptError: If another manager has been made for the folder meanwhile.
        """
        self._require_own()
        self.wait()
        step = self._check_step(step)
        value = None if metric is None else float(metric)
        if describe_leaves(items.state) != items.meta["leaves"]:  # also refuses donated arrays
            raise CheckpointError(
                "items: found meta that describes another state, expected the one that is saved. "
                "Call gather_meta with the same state."
            )
        record = {STEP_KEY: step, METRIC_KEY: float_to_json(value), MODE_KEY: self.monitor_mode}
        self._needed = num_bytes(items.state)
        # A copy: the caller may go on changing what a thread is about to write.
        meta = {**copy.deepcopy(items.meta), **record}
        saving = saving_folder(self.folder, step, self._run.attempt)
        remove_left(self._failed)
        try:
            with jax.transfer_guard("allow"):  # also called inside the guarded training loop
                if is_main_process():
                    saving.mkdir()
                reached("begun")
                state = self._copy.take(items.state) if self.async_save else items.state
                fingerprints = start_fingerprints(items.state, state)
                self._arrays.start(saving, state)
        except Exception as error:
            raise self._failure(step, error) from error
        self._save = save = Save(step, value, self._limit_s)
        parts = (self.folder, meta, fingerprints, self._arrays, self._run)
        save.done = self._committer.submit(save.commit, *parts)
        if self._on_saved is not None:
            tell = functools.partial(self._tell, self._on_saved, save, self._needed)
            save.done.add_done_callback(tell)
        if not self.async_save:
            self.wait()

    def _tell(
        self, on_saved: Callable[[Saved], None], save: Save, size: int, done: Future[None]
    ) -> None:
        error, seconds = done.exception(), time.monotonic() - save.begun
        problem = None if error is None else f"{type(error).__name__}: {error}"
        on_saved(Saved(self.folder, save.step, seconds, size, problem))

    def rank(self, step: int, metric: float) -> None:
        """Gives a step that is saved already the metric it is ranked by.

        Finishes the save under way first.

        Raises:
            CheckpointNotFoundError: If there is no such step.
            CheckpointError: If the save under way failed, or the metric cannot be written.
        """
        self._require_own()
        self.wait()
        self.metric_of(step)
        try:
            if is_main_process():
                write_rank(self.folder / str(step), float(metric), self.monitor_mode)
        except OSError as error:
            raise CheckpointError(
                f"{self.folder}: the metric of step {step} could not be written ({error}), "
                "expected a folder that can be written. Check its free space and permissions."
            ) from error
        self._metrics[step] = float(metric)
        self._prune()

    def wait(self) -> bool:
        """Finishes the save under way, if there is one, and removes steps that are not kept.

        Returns:
            Whether there was one.

        Raises:
            CheckpointError: If that save failed; raised once, and the next save may work.
        """
        if self._save is None:
            return False
        save, self._save = self._save, None
        error = save.outcome()
        if not save.done.done():
            self._begin_threads()  # those that are stuck are left behind
        own = None if error is None else f"{type(error).__name__}: {error}"
        said = gather(own, f"save of step {save.step}", self._limit_s + DEFAULT_TIMEOUT_S)
        failed = next((text for text in said if text is not None), None)
        if failed is not None:
            raise self._failure(save.step, failed) from error
        self._metrics[save.step] = save.metric
        self._prune()
        return True

    def when_failed(self, call: Callable[[], None]) -> None:
        """Calls something from another thread as soon as the save under way has failed."""
        if self._save is not None:
            self._save.done.add_done_callback(lambda done: done.exception() and call())

    def supersede_after(self, step: int) -> list[int]:
        """Sets all later steps aside: they belong to a course of training that is left.

        They are removed when the new course has come as far. Finishes the save under way first.

        Returns:
            Their numbers.
        """
        self._require_open()
        self.wait()
        later = [other for other in self.all_steps() if other > step]
        for other in later:
            if is_main_process():
                supersede(self.folder / str(other))
            del self._metrics[other]
        return later

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
            self._committer.close(_GRACE_S)
            self._remover.close(_REMOVING_S)
            self._arrays.close()
            remove_left(self._failed)

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

    def _require_own(self) -> None:
        self._require_open()
        if is_main_process():
            require_newest(self.folder, self._run)

    def _check_step(self, step: int) -> int:
        if wanted := wanted_count(step):
            raise CheckpointError(f"step: found {step!r}, expected {wanted}.")
        step = as_int(step)
        newer = [other for other in self.all_steps() if other >= step]
        if newer:
            raise CheckpointError(
                f"{self.folder}: found the steps {newer}, expected none at or after step {step}, "
                "which is about to be saved: they belong to another course of training. Train "
                "into another folder, or move these steps away."
            )
        place = self.folder / str(step)
        if is_main_process() and os.path.lexists(place):
            set_aside(place, ["it is no checkpoint, and in the place of one that is about to come"])
        return step

    def _failure(self, step: int, reason: BaseException | str) -> CheckpointWriteError:
        """Frees the space of a failed save, which may be what the next one lacks."""
        self._copy.free()  # other writes of the same save may still be reading it
        space = ""
        if is_main_process():
            space = free_space(self.folder)
            self._failed.append(saving_folder(self.folder, step, self._run.attempt))
            remove_tree(self._failed[-1])
            try:  # it may be the newer start that has removed the files
                require_newest(self.folder, self._run)
            except NewerAttemptError as error:
                return error
        if isinstance(reason, BaseException):
            reason = f"{type(reason).__name__}: {reason}"
        return CheckpointWriteError(
            f"{self.folder}: the save of step {step} failed ({reason}), expected it to be written. "
            f"It needs {self._needed:,} bytes. {space}Check the free space and the permissions "
            "of the folder; older steps are untouched."
        )

    def _prune(self) -> None:
        keep = steps_to_keep(self._metrics, self.max_to_keep, self.monitor_mode)
        old = sorted(self._metrics.keys() - keep)
        if is_main_process():
            self._remover.remove(self.folder / str(step) for step in old)
            self._remover.remove_superseded(self.folder, max(self._metrics))
        for step in old:
            del self._metrics[step]
