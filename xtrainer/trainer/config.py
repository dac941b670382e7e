"""What is asked of a trainer and of its model?"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from xtrainer.callbacks import CallbackConfig
from xtrainer.config import Config
from xtrainer.counts import MAX_COUNT, MAX_SEED, wanted_count
from xtrainer.errors import did_you_mean
from xtrainer.loggers import LoggerConfig
from xtrainer.metrics import LOG_MODES
from xtrainer.parallel import ParallelConfig
from xtrainer.registry import models
from xtrainer.step import PrecisionConfig
from xtrainer.trainer.deterministic import flag_problems
from xtrainer.trainer.exceptions import exception_problems


@dataclass(frozen=True, kw_only=True)
class TrainerConfig(Config):
    """How a model is trained, checked and logged."""

    seed: int = 0
    """Seed of initialization and training, 0 to 2**32 - 1."""
    deterministic: bool = False
    """Let two runs give the same bits on GPUs too, which can make steps far slower there (an
    embedding's gradient most of all; not with ``debug``, which compiles none). And seed the
    generators of Python and NumPy when training begins or goes on; xtrainer draws from neither."""
    train_exceptions: tuple[type[Exception], ...] = ()
    """Errors that end a run as a request to stop does, if a loader, a callback or the loss raises
    one: nothing is raised, the last good step is saved, and ``stop_reason`` is ``EXCEPTION``. An
    ``XTrainerError`` only if its own class is named. Of several processes all must raise one at
    the same step. Classes are not saved with the config."""
    test_exceptions: tuple[type[Exception], ...] = ()
    """Errors that end a test of ``train_model`` or ``test_model`` without metrics, and without
    being raised; for a process alone."""
    debug: bool = False
    """Leave training and evaluation steps uncompiled: slow, but they can be stepped through."""
    donate_train_state: bool = True
    """Let a step overwrite the state it is given. The old state cannot be used afterwards."""
    enable_progress_bar: bool = True
    """Draw progress bars, on the main process and on a terminal only."""
    gradient_accumulate_steps: int = 1
    """Micro-batches that a batch is divided into; the update is that of the whole batch."""
    gradient_accumulate_scan: bool = True
    """Scan over the micro-batches; otherwise unroll them, which compiles longer and needs more
    memory."""
    check_val_every_n_epoch: int = 1
    """Epochs between validations at the end of an epoch; -1: none."""
    check_val_every_n_steps: int = -1
    """Steps between validations within epochs; -1: none. Both kinds can be used together."""
    checks_per_epoch: int = -1
    """Instead: validations in each epoch, evenly spread over its steps, the last one at its end. So
    many steps as ``steps_per_epoch`` says, or else the length of the training loader; -1: none."""
    evaluate_training_set: bool = False
    """Evaluate the training set too, without updates, at each validation: as one more set called
    ``train`` (``train_loss``, ...), whole and in its order, wherever training stands in it. Without
    it there are the metrics gathered while training, with other parameters at each step. The
    training loader is a list, an ``ArrayLoader``, a ``GrainLoader`` or has ``for_evaluation()``."""
    check_for_nan: bool = True
    """End the run as ``nonfinite_policy`` says when a step is not finite. Such a step never changes
    the state, with False neither: it is then refused, counted, and training goes on."""
    nonfinite_policy: Literal["stop", "skip", "rollback"] = "stop"
    """``stop``: end with the first step that is not finite. ``skip``: refuse such steps and end
    after ``max_consecutive_nonfinite`` of them in a row. ``rollback``: refuse them, and after as
    many in a row, or a spike of the loss, go back to the last checkpoint before them and go on
    without their batches."""
    max_consecutive_nonfinite: int = 10
    """Refused steps in a row that end a run with the policy ``skip``, or send it back."""
    spike_threshold: float | None = None
    """With the policy ``rollback``: a row of training is a spike if its mean loss is more than this
    many times the median of the 20 rows before it; None: nothing is."""
    max_rollbacks: int = 3
    """How often a run goes back; with the next time it ends."""
    rollback_lr_scale: float = 1.0
    """What the learning rate is multiplied by each time the run goes back, for all later steps."""
    handle_signals: bool = True
    """Whether the first SIGTERM, SIGINT (Ctrl-C), SIGUSR1 or SIGHUP ends training after its step
    with a checkpoint, and a second one at once. Only while training, and in the main thread."""
    black_box: bool = True
    """Keep a record of each step that is refused, and of an error that ends the run, in the run
    folder's ``black_box``; ``xtrainer replay`` looks for its cause."""
    black_box_max_bytes: int = 2**26
    """Bytes up to which the batch of a refused step is kept too; 0: never."""
    black_box_max_records: int = 3
    """Records of refused steps that one start of a run may write; the first ones are kept."""
    max_steps_in_flight: int = 2
    """Steps that may be dispatched before the first of them has ended. Unbounded queues abort runs
    on several CPU devices, and the bound costs nothing where steps are long."""
    steps_per_dispatch: int = 1
    """Steps that are taken in one compiled call, by a scan over as many batches, with the same
    results. Where steps are short this saves the host's time for each; long ones gain nothing, and
    some are slower in a scan. A call ends where a row, a validation, a callback or an epoch is
    due."""
    log_grad_norm: bool = True
    """Log the norm of the whole gradient, before clipping."""
    log_grad_norm_per_param: bool = False
    """Log the norm of each parameter's gradient."""
    log_param_norm: bool = True
    """Log the norm of all parameters."""
    log_param_norm_per_param: bool = False
    """Log the norm of each parameter."""
    log_intermediates: bool = False
    """Log scalars that the model records with ``self.sow("intermediates", name, value)``."""
    default_train_log_modes: list[str] = field(default_factory=lambda: ["mean"])
    """What is logged of each training metric over the steps of a row: ``mean`` and
    ``mean_nopostfix``, ``single`` (the last step), ``max``, ``min``, ``sum``, ``std``. A metric can
    ask for others with ``log_modes``. Validation logs the mean."""
    intermediates_log_modes: list[str] = field(default_factory=lambda: ["mean"])
    """The same for intermediates."""
    logger: LoggerConfig | None = field(default_factory=LoggerConfig)
    """Where metrics go; None: nowhere."""
    callbacks: list[CallbackConfig] = field(default_factory=list)
    """What else happens, in this order; checkpoints are saved last."""
    seed_eval: int = 0
    """Seed of evaluation, for models that draw random numbers there."""
    startup_timeout_s: float = 3600.0
    """Seconds that start-up may take without moving on, and later a compilation; <= 0: any. This
    and the other limits are watched by a thread, see ``on_hang``."""
    hang_timeout_s: float = 1800.0
    """Seconds within which a step must finish, and a call of a callback or a logger; <= 0: any. A
    callback that takes longer may call ``trainer.ledger.beat()`` from time to time."""
    loader_timeout_s: float = 1800.0
    """Seconds without a batch after which the loader is taken to hang: that is an error, which says
    where in its code it stands. A warning comes before it. <= 0: wait for ever."""
    on_changed_data: Literal["stop", "warn"] = "stop"
    """What happens when a run goes on and a loader has other data than the checkpoint was saved in,
    as far as loaders know theirs (``fingerprint()``). ``stop``: an error. ``warn``: the run goes on
    with them, at the same batch, or at the first one where the position is none in these data."""
    validation_timeout_s: float = 1800.0
    """Seconds within which one batch of a validation must finish; <= 0: any."""
    save_timeout_s: float = 1800.0
    """Seconds after which a save that is not written counts as failed; <= 0: never."""
    on_hang: Literal["end", "report"] = "end"
    """What happens when a limit is passed: all threads of all processes are shown, and which
    process is missing or behind, in the log and in ``crash_PROCESS.json`` of the run folder. Then
    ``end`` ends the run at once with the code 124; ``report`` lets it go on, as ``debug`` does."""
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    """Dtypes of parameters and computation."""
    compilation_cache: bool | str = False
    """Keep compiled programs for the next start: True for this user's folder
    (``~/.cache/xtrainer/compilation``), or a folder. It is for the whole process."""

    def problems(self) -> list[str]:
        """Returns numbers and names that cannot work."""
        found = []
        for name in ("seed", "seed_eval"):
            value = getattr(self, name)
            if wanted_count(value, 0, MAX_SEED):  # larger seeds would be cut off silently
                found.append(f"{name}: found {value}, expected 0 <= seed < 2**32.")
        for name in (
            "gradient_accumulate_steps",
            "max_consecutive_nonfinite",
            "max_steps_in_flight",
            "black_box_max_records",
            "steps_per_dispatch",
        ):
            if getattr(self, name) < 1:
                found.append(f"{name}: found {getattr(self, name)}, expected a number >= 1.")
        if self.max_consecutive_nonfinite > MAX_COUNT:  # the guard counts them on the devices
            value = self.max_consecutive_nonfinite
            found.append(
                f"max_consecutive_nonfinite: found {value}, expected a number <= {MAX_COUNT}."
            )
        found += self._rollback_problems()
        if self.deterministic:
            found += flag_problems(os.environ.get("XLA_FLAGS", ""))
        found += exception_problems("train_exceptions", self.train_exceptions)
        found += exception_problems("test_exceptions", self.test_exceptions)
        if self.black_box_max_bytes < 0:
            value = self.black_box_max_bytes
            found.append(f"black_box_max_bytes: found {value}, expected a number >= 0.")
        found += self._validation_problems()
        for name in (
            "startup_timeout_s",
            "hang_timeout_s",
            "loader_timeout_s",
            "validation_timeout_s",
            "save_timeout_s",
        ):
            if not math.isfinite(getattr(self, name)):
                found.append(
                    f"{name}: found {getattr(self, name)}, expected seconds, or 0 for no limit."
                )
        for name in ("default_train_log_modes", "intermediates_log_modes"):
            for mode in getattr(self, name):
                if mode not in LOG_MODES:
                    found.append(f"{name}: found {mode!r}. {did_you_mean(mode, LOG_MODES)}")
        if isinstance(self.compilation_cache, str) and not self.compilation_cache.strip():
            found.append(
                f"compilation_cache: found {self.compilation_cache!r}, expected True, False or the "
                "path of a folder."
            )
        return found

    def _validation_problems(self) -> list[str]:
        found = []
        for name in ("check_val_every_n_epoch", "check_val_every_n_steps"):
            value = getattr(self, name)
            if value < 1 and value != -1:
                found.append(f"{name}: found {value}, expected >= 1, or -1 for no validation.")
        if self.checks_per_epoch < 1 and self.checks_per_epoch != -1:
            found.append(f"checks_per_epoch: found {self.checks_per_epoch}, expected >= 1, or -1.")
        if self.checks_per_epoch != -1 and self.check_val_every_n_steps != -1:
            found.append(
                f"checks_per_epoch: found {self.checks_per_epoch} with check_val_every_n_steps="
                f"{self.check_val_every_n_steps}, expected one of them: both say when to validate "
                "within an epoch."
            )
        return found

    def _rollback_problems(self) -> list[str]:
        found = []
        if self.spike_threshold is not None and self.nonfinite_policy != "rollback":
            found.append(
                f"spike_threshold: found {self.spike_threshold} with nonfinite_policy="
                f"{self.nonfinite_policy!r}, expected 'rollback', or None for no threshold."
            )
        if self.spike_threshold is not None and not self.spike_threshold > 1:
            found.append(
                f"spike_threshold: found {self.spike_threshold}, expected a number > 1: a loss is "
                "compared with so many times the median."
            )
        if self.max_rollbacks < 1:
            found.append(f"max_rollbacks: found {self.max_rollbacks}, expected a number >= 1.")
        if not 0 < self.rollback_lr_scale <= 1:
            found.append(
                f"rollback_lr_scale: found {self.rollback_lr_scale}, expected 0 < scale <= 1."
            )
        return found

    @property
    def nonfinite_limit(self) -> int | None:
        """Refused steps in a row that end the run; None: no number of them does."""
        if not self.check_for_nan:
            return None
        return 1 if self.nonfinite_policy == "stop" else self.max_consecutive_nonfinite


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Config):
    """Which model, with which arguments, over which devices."""

    model_class: str | type | Callable[..., Any] | None = None
    """The class, or the name it is registered under; None: the trainer's attribute
    ``model_class``. A Flax NNX class is wrapped, see ``NNXModel``."""
    model_config: Any = None
    """A mapping gives keyword arguments, any other object is the one positional argument, None
    calls ``model_class()``."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """How the devices are divided."""

    def problems(self) -> list[str]:
        """Returns a model name that is not registered."""
        name = self.model_class
        if isinstance(name, str) and name not in models:
            return [
                f"model_class: no model is registered as {name!r}. {did_you_mean(name, models)}"
            ]
        return []
