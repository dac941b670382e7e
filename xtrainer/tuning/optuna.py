"""Which settings are the best? A study with Optuna in a folder that several programs may share."""

import contextlib
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, cast

from xtrainer.callbacks import Callback, CallbackConfig
from xtrainer.callbacks.view import CallbackTrainer
from xtrainer.counts import MAX_SEED
from xtrainer.errors import (
    ConfigError,
    FolderInUseError,
    MetricError,
    XTrainerError,
    did_you_mean,
    require,
)
from xtrainer.launch import process_count
from xtrainer.launch.folder_lock import FolderLock
from xtrainer.loop import StopReason
from xtrainer.trainer import TrainerModule
from xtrainer.trainer.batch_trials import check_counts
from xtrainer.types import HostMetrics

_LOG = logging.getLogger(__name__)

JOURNAL_FILE = "study.journal"
LOCKS = "locks"
_WAIT_S = 60.0
"""For a lock that others hold for a moment only: a line of the journal, the choice of a trial."""
_POLL_S = 0.005

Objective = Callable[[Any, Path], float]
"""From Optuna's trial and the folder of its run to the value that is to be smallest or largest."""


class TrialInterruptedError(XTrainerError):
    """A trial whose run was asked to end; it stays open, and the next start goes on with it.

    ``TrialWatch.result`` raises it; an objective that does without that must do so itself.
    """


def run_study(
    objective: Objective,
    folder: str | Path,
    num_trials: int,
    *,
    direction: Literal["min", "max"] = "min",
    study_name: str = "study",
    storage: str | None = None,
    sampler: Callable[[int], Any] | None = None,
    pruner: Any = None,
    seed: int = 0,
    resume: Literal["auto", "must", "never"] = "auto",
) -> Any:
    """Runs trials until a study has as many as are asked for, and returns it.

    Several programs may run it for one folder at once: each trial is done by one of them. A trial
    whose program was killed is gone on with by the next that looks for work: under its number, with
    its values, in its folder, where ``train_model`` resumes. Each trial draws from a seed of its
    own, so that a study that was broken off suggests what it would have. A value that is not finite
    counts as pruned. An error of the objective fails the trial, whose place another takes.

    Args:
        objective: ``objective(trial, folder)`` trains with the trial's values, see ``suggest`` and
            :func:`watch_trial`, logs and saves in the folder, ``trial_N``, and returns the value.
        folder: Where the study and its trials are.
        num_trials: Trials of the whole study, by whatever program; failed ones do not count.
        direction: Whether the best value is the smallest or the largest.
        study_name: Several studies in one ``storage`` differ by it.
        storage: The URL of a database; None: a file in the folder, which needs no server.
        sampler: From a seed to a sampler of Optuna; None: ``TPESampler``.
        pruner: A pruner of Optuna; None: Optuna's default, the median of earlier trials.
        seed: Of the samplers; that of trial N is ``seed + N``.
        resume: Whether to go on with a study: ``"auto"``: if there is one; ``"must"``, ``"never"``.

    Returns:
        The ``optuna.Study``: ``best_value``, ``best_params``, ``trials_dataframe()``.

    Raises:
        ConfigError: For arguments that cannot be, or a study that is not what was asked for.
        MissingDependencyError: If Optuna is not installed.
        XTrainerError: Within a run of several processes.

    Example:
        >>> import tempfile
        >>> def objective(trial, folder):
        ...     return (trial.suggest_float("x", -1.0, 1.0) - 0.5) ** 2
        >>> run_study(objective, tempfile.mkdtemp(), 20).best_value < 0.1
        True
    """
    _check(num_trials, seed, direction, resume)
    optuna = require("optuna", "optuna")
    folder = Path(folder).expanduser().resolve()
    study = _open(optuna, folder, storage, study_name, direction, pruner, resume)
    make_sampler = sampler or (lambda number: optuna.samplers.TPESampler(seed=number))
    while (claimed := _claim(optuna, study, folder, num_trials, seed, make_sampler)) is not None:
        trial, lock = claimed
        with lock:
            if not _run(optuna, study, trial, objective, folder / f"trial_{trial.number}"):
                break
    return study


def _check(num_trials: int, seed: int, direction: str, resume: str) -> None:
    check_counts("run_study", {"num_trials": (num_trials, 1), "seed": (seed, 0)})
    if direction not in ("min", "max") or resume not in ("auto", "must", "never"):
        raise ConfigError(
            f"run_study: found direction={direction!r}, resume={resume!r}, expected 'min' or 'max' "
            "and 'auto', 'must' or 'never'."
        )
    if process_count() > 1:
        raise XTrainerError(
            f"run_study: found a run of {process_count()} processes, expected one that trains "
            "alone. Start a program for each trial that is to run at a time, with one folder."
        )


def watch_trial(trainer: TrainerModule, trial: Any, monitor: str = "loss") -> "TrialWatch":
    """Lets a trainer tell a trial of its validations, and end where the trial is pruned.

    Args:
        trainer: Of the trial; call this before ``train_model``.
        trial: Optuna's.
        monitor: A validation metric: ``loss``, of a named set ``SET_loss``.

    Returns:
        The callback; return its ``result()`` from the objective, after ``train_model``.

    Example::

        def objective(trial, folder):
            trainer = make_trainer(trial.suggest_float("lr", 1e-4, 1.0, log=True), folder)
            watch = watch_trial(trainer, trial)
            trainer.train_model(train_loader, val_loader, num_epochs=5)
            return watch.result()
    """
    watch = TrialWatch(trial, cast(CallbackTrainer, trainer), monitor)
    trainer.callbacks.insert(0, watch)  # checkpoints are written after it
    return watch


class TrialWatch(Callback):
    """See :func:`watch_trial`. It is no part of the trainer's config: a trial has no form in JSON.

    Args:
        trial: Optuna's.
        trainer: Its trainer.
        monitor: A validation metric.
    """

    def __init__(self, trial: Any, trainer: CallbackTrainer, monitor: str) -> None:
        super().__init__(CallbackConfig(), trainer)
        self.trial = trial
        self.monitor = monitor.removeprefix("val/")
        self.pruned = ""

    @property
    def reported(self) -> dict[int, float]:
        """What the study knows of this trial: the metric by step."""
        return self.trial.study.get_trials(deepcopy=False)[self.trial.number].intermediate_values

    def on_training_start(self) -> None:
        """Ends a run that goes on after a kill, and whose trial is pruned by what it had told."""
        if self.reported and self.trial.should_prune():
            self._prune(f"by what it was at step {max(self.reported)}.")

    def on_validation_epoch_end(
        self, eval_metrics: HostMetrics, epoch_idx: int, step_idx: int
    ) -> None:
        """Reports a validation; those that were reported before a kill are known already."""
        if self.monitor not in eval_metrics:
            raise MetricError(
                f"A trial is judged by {self.monitor!r}, which is not among the metrics of step "
                f"{step_idx}. {did_you_mean(self.monitor, eval_metrics)}"
            )
        value = float(eval_metrics[self.monitor])
        if not math.isfinite(value):
            self._prune(f"{self.monitor!r} is not finite at step {step_idx}: {value}.")
            return
        if step_idx not in self.reported:
            self.trial.report(value, step_idx)
        if self.trial.should_prune():
            self._prune(f"{self.monitor!r} is {value:.6g} at step {step_idx}.")

    def _prune(self, why: str) -> None:
        self.pruned = why
        self.trainer.request_stop(detail=f"Trial {self.trial.number} is pruned: {why}")

    def result(self) -> float:
        """Returns the best value of all validations, those before a kill included.

        Raises:
            TrialPruned: Of Optuna, if the trial was pruned or its training was not finite.
            TrialInterruptedError: If a signal has ended the run.
            MetricError: If there was no validation.
        """
        reason = cast(StopReason | None, self.trainer.stop_reason)
        if reason is not None and reason.was_asked_from_outside and not self.pruned:
            raise TrialInterruptedError(f"Trial {self.trial.number}: {reason.value}")
        if self.pruned or reason in (StopReason.NONFINITE, StopReason.UNSTABLE):
            why = self.pruned or cast(StopReason, reason).value
            raise require("optuna", "optuna").TrialPruned(why)
        values = self.reported.values()
        if not values:
            raise MetricError(
                f"Found no validation of trial {self.trial.number}, expected one at least to judge "
                "it by. Pass a val_loader to train_model, and let it validate."
            )
        return max(values) if self.trial.study.direction.name == "MAXIMIZE" else min(values)


def _open(
    optuna: Any,
    folder: Path,
    storage: str | None,
    study_name: str,
    direction: str,
    pruner: Any,
    resume: str,
) -> Any:
    """Returns the study, begun if there is none."""
    folder.mkdir(parents=True, exist_ok=True)
    opened: Any = storage
    if storage is None:
        path = folder / JOURNAL_FILE
        backend = optuna.storages.journal.JournalFileBackend(str(path), _JournalLock(path))
        opened = optuna.storages.JournalStorage(backend)
    with _locked(folder, "next"):
        known = study_name in optuna.get_all_study_names(opened)
        if resume != "auto" and known != (resume == "must"):
            raise ConfigError(
                f"run_study: found {'a' if known else 'no'} study {study_name!r} in "
                f"{storage or folder}, expected {'one' if resume == 'must' else 'none'} by "
                f"resume={resume!r}. Choose another folder or study_name, or resume='auto'."
            )
        study = optuna.create_study(
            storage=opened,
            study_name=study_name,
            direction=f"{direction}imize",
            pruner=pruner,
            load_if_exists=True,
        )
    if study.direction.name.lower() != f"{direction}imize":
        raise ConfigError(
            f"run_study: found direction={direction!r}, expected that of the study {study_name!r} "
            f"in {storage or folder}: {study.direction.name.lower()[:3]!r}."
        )
    return study


def _claim(
    optuna: Any,
    study: Any,
    folder: Path,
    num_trials: int,
    seed: int,
    make_sampler: Callable[[int], Any],
) -> tuple[Any, FolderLock] | None:
    """Returns a trial that is this program's now, with what tells so; None: no more are wanted.

    One program at a time looks. A trial under way whose lock is free has lost its program.
    """
    states = optuna.trial.TrialState
    with _locked(folder, "next"):
        trials = study.get_trials(deepcopy=False)
        for one in trials:
            if one.state == states.RUNNING:
                with contextlib.suppress(FolderInUseError):
                    lock = _lock(folder, f"trial_{one.number}")
                    now = study.get_trials(deepcopy=False)[one.number]
                    if now.state != states.RUNNING:  # it has just ended
                        lock.release()
                        continue
                    _LOG.info("Trial %d had lost its program; it goes on.", one.number)
                    study.sampler = make_sampler((seed + one.number) % (MAX_SEED + 1))
                    return optuna.trial.Trial(study, one._trial_id), lock
        begun = [one for one in trials if one.state not in (states.FAIL, states.WAITING)]
        if len(begun) >= num_trials:
            return None
        study.sampler = make_sampler((seed + len(trials)) % (MAX_SEED + 1))
        trial = study.ask()
        return trial, _lock(folder, f"trial_{trial.number}")


def _run(optuna: Any, study: Any, trial: Any, objective: Objective, folder: Path) -> bool:
    """Runs a trial and tells the study of it; says whether this program is to take another.

    What is no ``Exception``, such as a Ctrl-C, leaves the trial open for the next start.
    """
    states = optuna.trial.TrialState
    try:
        value = float(objective(trial, folder))
    except optuna.TrialPruned as pruned:
        _LOG.info("Trial %d is pruned: %s", trial.number, pruned)
        study.tell(trial, state=states.PRUNED)
    except TrialInterruptedError as error:
        _LOG.warning("%s The next start of the study goes on with it.", error)
        return False
    except Exception:
        study.tell(trial, state=states.FAIL)
        raise
    else:
        if math.isfinite(value):
            study.tell(trial, value)
        else:
            _LOG.warning("Trial %d gave %s: it counts as pruned.", trial.number, value)
            study.tell(trial, state=states.PRUNED)
    return True


def _lock(folder: Path, name: str) -> FolderLock:
    """Returns a lock that the kernel takes from a program that dies.

    Raises:
        FolderInUseError: If another program holds it.
    """
    place = folder / LOCKS / name
    place.mkdir(parents=True, exist_ok=True)  # and stays: others may look at the same moment
    return FolderLock(place)


def _wait_for(folder: Path, name: str) -> FolderLock:
    deadline = time.monotonic() + _WAIT_S
    while True:
        try:
            return _lock(folder, name)
        except FolderInUseError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL_S)


@contextlib.contextmanager
def _locked(folder: Path, name: str) -> Iterator[None]:
    with _wait_for(folder, name):
        yield


class _JournalLock:
    """Lets one program at a time write to the journal, as Optuna's own locks do.

    Those are files that a killed program leaves behind, for which all others wait. And what it had
    written of a line makes the journal unreadable for good when the next line is written behind it:
    it is cut off first.

    Args:
        journal: The file.
    """

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._held: FolderLock | None = None

    def acquire(self) -> bool:
        """Waits for the lock and mends the end of the journal."""
        self._held = _wait_for(self._journal.parent, "journal")
        with self._journal.open("r+b") as file:
            if file.seek(0, os.SEEK_END) and file.seek(-1, os.SEEK_END) and file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        """Lets others write."""
        held, self._held = self._held, None
        if held is not None:
            held.release()
