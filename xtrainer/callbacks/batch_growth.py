"""When is a batch too small? When a metric gets no better, or by a plan, it is made larger."""

import logging
import math
from dataclasses import dataclass
from typing import Any, Literal

from xtrainer.callbacks.monitor import Monitoring, MonitoringConfig, Standing
from xtrainer.callbacks.view import CallbackTrainer
from xtrainer.errors import ConfigError
from xtrainer.launch import is_main_process
from xtrainer.types import JSON, HostMetrics

_LOG = logging.getLogger(__name__)
_POWERS = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}


@dataclass(frozen=True, kw_only=True)
class BatchSizeGrowthConfig(MonitoringConfig):
    """Makes training batches larger: where a metric has not improved for some time, or by a plan.

    A new size begins with the next pass of the training loader, which must be able to change it
    (``ArrayLoader``, ``GrainLoader``, or any ``xtrainer.types.ResizableLoader``). The step is
    compiled once for each size, while training goes on with the last one. Schedules count updates,
    of which there are fewer with larger batches.
    """

    monitor: str = "train/loss"
    """A training epoch's metric, or a validation's (``loss``, of a named set ``SET_loss``). Not
    read with a ``plan``."""
    patience: int = 5
    """Evaluations in a row without an improvement after which the batch grows (training epochs, for
    their metrics)."""
    rate: float = 2.0
    """How many times larger a batch becomes, above 1; a part of a row is left out."""
    max_batch_size: int | None = None
    """The largest batch, over all processes: one that would be larger has this size. Needed without
    a ``plan``."""
    times: int = -1
    """How often it grows; -1: until it is as large as it may be."""
    plan: tuple[tuple[int, int], ...] = ()
    """Instead: pairs of a step and of the batch size with which the first pass begins that follows
    it, in order. ``((1000, 64), (5000, 256))``."""
    scale_lr: Literal["none", "sqrt", "linear"] = "none"
    """Whether the learning rate grows with the batch: by the same factor, or its square root, from
    the first step with the new size on. It is part of the optimizer's state then, see
    :class:`ReduceLROnPlateauConfig`."""

    @property
    def changes_batch_size(self) -> bool:
        """It does."""
        return True

    @property
    def changes_learning_rate(self) -> bool:
        """Whether the learning rate grows as well."""
        return self.scale_lr != "none"

    def create(self, trainer: CallbackTrainer, data_module: Any = None) -> "BatchSizeGrowth":
        """Returns the callback."""
        return BatchSizeGrowth(self, trainer, data_module)

    def problems(self) -> list[str]:
        """Returns settings that cannot be."""
        found = super().problems()
        if self.patience < 1:
            found.append(f"patience: found {self.patience}, expected a number >= 1.")
        if not 1 < self.rate < math.inf:
            found.append(f"rate: found {self.rate}, expected a number > 1.")
        if self.times < 1 and self.times != -1:
            found.append(f"times: found {self.times}, expected >= 1, or -1 for any number.")
        if self.scale_lr not in _POWERS:
            found.append(f"scale_lr: found {self.scale_lr!r}, expected one of {list(_POWERS)}.")
        if self.main_process_only:
            found.append(
                "main_process_only: found True, expected False: all processes share a batch."
            )
        return found + self._plan_problems()

    def _plan_problems(self) -> list[str]:
        if not self.plan:
            if self.max_batch_size is None or self.max_batch_size < 1:
                return [
                    f"max_batch_size: found {self.max_batch_size} without a plan, expected a "
                    "number >= 1. Say how large a batch may become."
                ]
            return []
        found = []
        steps, sizes = zip(*self.plan, strict=True)
        rising = all(list(numbers) == sorted(set(numbers)) for numbers in (steps, sizes))
        if not rising or steps[0] < 1 or sizes[0] < 1:
            found.append(
                f"plan: found {self.plan}, expected pairs of a step and a batch size, both >= 1 "
                "and larger than those before."
            )
        if self.max_batch_size is not None or self.times != -1:
            found.append(
                f"plan: found {self.plan} beside max_batch_size={self.max_batch_size} and "
                f"times={self.times}, expected either a plan or these: a plan says it all."
            )
        return found


def sizes_to_come(config: BatchSizeGrowthConfig, size: int, grown: int = 0) -> list[int]:
    """Returns the batch sizes that a run may still meet, in their order.

    Args:
        config: Says how batches grow.
        size: What it is now.
        grown: How often it has grown by now.

    Example:
        >>> sizes_to_come(BatchSizeGrowthConfig(max_batch_size=100), 16)
        [32, 64, 100]
        >>> sizes_to_come(BatchSizeGrowthConfig(max_batch_size=100, times=2), 16, grown=1)
        [32]
    """
    if config.plan:
        return [rows for _, rows in config.plan if rows > size]
    found: list[int] = []
    while config.times < 0 or grown + len(found) < config.times:
        larger = min(int(size * config.rate), config.max_batch_size or size)
        if larger <= size:
            break
        found.append(larger)
        size = larger
    return found


def planned_size(config: BatchSizeGrowthConfig, step: int) -> int | None:
    """Returns the size that a plan wants for the first pass after a step; None: the first one."""
    return next((rows for begin, rows in reversed(config.plan) if begin <= step), None)


class BatchSizeGrowth(Monitoring):
    """See :class:`BatchSizeGrowthConfig`.

    All processes ask for a new size at the same step. A run that goes on from a checkpoint has the
    size, and the patience, that it had there.
    """

    config: BatchSizeGrowthConfig

    def __init__(
        self, config: BatchSizeGrowthConfig, trainer: CallbackTrainer, data_module: Any = None
    ) -> None:
        super().__init__(config, trainer, data_module)
        self.first_size: int | None = None
        """Rows of a batch when training began."""
        self.size: int | None = None
        """Rows of a batch from the next pass on."""
        self.grown = 0
        """How often a plateau has made it larger."""
        self._factor = 1.0

    @property
    def learning_rate_factor(self) -> float:
        """What the learning rate is multiplied by with the size of the pass under way."""
        return self._factor

    def on_training_start(self) -> None:
        """Checks all sizes to come, and asks again for one that a checkpoint has waited for.

        Raises:
            ConfigError: If they cannot be, or the training loader cannot change its size; if a
                validation is monitored and there is none.
        """
        if not self.config.plan:
            super().on_training_start()
        if self.first_size is None:
            self.first_size = self.size = self.trainer.train_batch_size
        if self.size is None:
            raise ConfigError("BatchSizeGrowth: the checkpoint names no size. Use another step.")
        if self.config.plan:
            self.size = planned_size(self.config, self.trainer.progress.step) or self.first_size
        if smaller := [rows for _, rows in self.config.plan if rows <= self.first_size]:
            raise ConfigError(
                f"BatchSizeGrowth: found {smaller} among the batch sizes of the plan, and a "
                f"training loader whose batches have {self.first_size} rows, expected larger ones. "
                "Change the plan, or the loader."
            )
        now = self.trainer.train_batch_size
        to_come = [self.size, *sizes_to_come(self.config, self.size, self.grown)]
        self.trainer.check_batch_sizes([rows for rows in dict.fromkeys(to_come) if rows > now])
        if self.config.changes_learning_rate:
            self.trainer.update_learning_rate()
        self._ask()

    def on_rollback(self, step_idx: int) -> None:
        """Asks for the size that the checkpoint has waited for, and for no other."""
        self._ask()

    def next_step(self, step: int) -> int | None:
        """Returns the next step of the plan."""
        return min((begin for begin, _ in self.config.plan if begin > step), default=None)

    def on_training_step(self, step_metrics: HostMetrics, epoch_idx: int, step_idx: int) -> None:
        """Asks for the size that the plan wants from here on."""
        rows = planned_size(self.config, step_idx)
        if rows is not None and rows != self.size:
            self._tell(rows, f"The plan asks for it at step {step_idx}.", step_idx)

    def on_validation_epoch_end(
        self, eval_metrics: HostMetrics, epoch_idx: int, step_idx: int
    ) -> None:
        """Judges a validation, unless there is a plan."""
        if not self.config.plan:
            super().on_validation_epoch_end(eval_metrics, epoch_idx, step_idx)

    def on_training_epoch_end(self, train_metrics: HostMetrics, epoch_idx: int) -> None:
        """Judges an epoch, unless there is a plan."""
        if not self.config.plan:
            super().on_training_epoch_end(train_metrics, epoch_idx)

    def _judged(self, standing: Standing) -> None:
        if standing.waited < self.config.patience or self.size is None:
            return
        self.standing = standing._replace(waited=0)
        larger = sizes_to_come(self.config, self.size, self.grown)
        if larger:
            self.grown += 1
            why = f"{self.config.monitor!r} has not improved for {standing.waited} evaluations."
            self._tell(larger[0], why, standing.step)

    def _tell(self, rows: int, why: str, step: int) -> None:
        self.size = rows
        self._ask()
        text = f"BatchSizeGrowth: {why} Batches have {rows} rows from the next pass on."
        if is_main_process():
            _LOG.info("%s", text)
        self.trainer.logger.log_text("batch_size", text, step)

    def _ask(self) -> None:
        if self.size is not None:
            self.trainer.set_batch_size(self.size, self._begun)

    def _begun(self, rows: int) -> None:
        """Lets the learning rate follow, with the first step of the new size."""
        if self.config.changes_learning_rate and self.first_size is not None:
            self._factor = (rows / self.first_size) ** _POWERS[self.config.scale_lr]
            self.trainer.update_learning_rate()

    def state_dict(self) -> dict[str, JSON]:
        """Returns the sizes, and how the metric stands."""
        return {
            "first_size": self.first_size,
            "size": self.size,
            "grown": self.grown,
            "factor": self._factor,
            "standing": super().state_dict(),
        }

    def load_state_dict(self, state: dict[str, JSON]) -> None:
        """Takes back the sizes, and how the metric stood."""
        super().load_state_dict(state["standing"])
        first, size = state["first_size"], state["size"]
        self.first_size = None if first is None else int(first)
        self.size = None if size is None else int(size)
        self.grown, self._factor = int(state["grown"]), float(state["factor"])
