"""How fast is it? Steps, examples, tokens and operations a second, and how much of the chips."""

import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from xtrainer.callbacks.base import Callback, CallbackConfig
from xtrainer.callbacks.chips import peak_flops
from xtrainer.callbacks.view import CallbackTrainer
from xtrainer.types import HostMetrics


@dataclass(frozen=True, kw_only=True)
class ThroughputConfig(CallbackConfig):
    """Adds rates to the logged rows of training; steps themselves cost nothing.

    ``steps_per_s``, ``examples_per_s`` (padding not counted), ``tokens_per_s``, ``flops_per_s`` and
    ``mfu``, the share of the devices' peak (Chowdhery et al., PaLM, 2022, appendix B,
    https://arxiv.org/abs/2204.02311). They are rates of training alone: validations, and what
    happens between two epochs, are left out, and so is the beginning up to the first row, with its
    compilation. Waiting for data counts, and so do a compilation for a last batch of another shape,
    what callbacks that are listed later do at a validation within an epoch, and checkpoints that
    are saved by steps.
    """

    tokens_per_example: int | None = None
    """Tokens of one row of a batch; None: ``tokens_per_s`` is not logged."""
    flops_per_step: float | None = None
    """Floating-point operations of a step on a full batch, of all devices together, for models
    with kernels whose operations cannot be counted; None: counted, see
    :func:`xtrainer.step.count_flops`, without what ``remat`` computes again."""
    peak_flops_per_device: float | None = None
    """Operations a second of one device; None: dense bfloat16 as the vendor gives it. Where that is
    not known, as for a CPU, ``mfu`` is not logged."""

    def create(self, trainer: CallbackTrainer, data_module: Any = None) -> "Throughput":
        """Returns the callback."""
        return Throughput(self, trainer, data_module)

    def problems(self) -> list[str]:
        """Returns numbers that cannot be."""
        return super().problems() + [
            f"{name}: found {value}, expected a number > 0, or None."
            for name in ("tokens_per_example", "flops_per_step", "peak_flops_per_device")
            if (value := getattr(self, name)) is not None and value <= 0
        ]


class _Mark(NamedTuple):
    """How much was done after how much training: steps (also parts of one), examples, seconds."""

    steps: float
    examples: float
    seconds: float


class Throughput(Callback):
    """See :class:`ThroughputConfig`.

    A row is logged later than its steps were computed, when the next one is full. So the seconds
    that have passed are not those of the row: each row notes how much is done by then, and what a
    row says is the time between these notes that belongs to its own steps, as if those between two
    notes were equally long. The first row has no rates, and neither has the second where it follows
    at once.

    Args:
        config: See there.
        trainer: The trainer.
        data_module: Not used.
        clock: Seconds of any origin.
    """

    config: ThroughputConfig

    def __init__(
        self,
        config: ThroughputConfig,
        trainer: CallbackTrainer,
        data_module: Any = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        super().__init__(config, trainer, data_module)
        self._clock = clock
        self._flops: float | None = None  # of an example
        self._begin()

    def is_due(self, hook: str, args: Sequence[Any]) -> bool:
        """Returns True: every pause has to be seen."""
        return True

    def on_training_start(self) -> None:
        """Begins anew."""
        self._begin()

    def on_training_epoch_start(self, epoch_idx: int) -> None:
        """Lets the clock run."""
        self._resume()

    def on_training_epoch_end(self, train_metrics: HostMetrics, epoch_idx: int) -> None:
        """Stops the clock."""
        self._settle()
        self._pause()

    def on_validation_epoch_start(self, epoch_idx: int, step_idx: int) -> None:
        """Stops the clock."""
        self._settle()
        self._pause()

    def on_validation_epoch_end(
        self, eval_metrics: HostMetrics, epoch_idx: int, step_idx: int
    ) -> None:
        """Lets the clock run, within an epoch."""
        if self.trainer.progress.step_in_epoch:
            self._resume()

    def on_training_log(self, train_metrics: HostMetrics, step_idx: int) -> None:
        """Adds the rates of the row that ends with a step."""
        if self._flops is None:
            self._flops = self._count()  # before the clock is read: it may take a second
        self._note(step_idx)
        pace = self._pace(self._row_end, step_idx)
        self._row_end = step_idx
        if pace is None:
            return
        train_metrics["steps_per_s"] = pace.steps / pace.seconds
        train_metrics["examples_per_s"] = examples = pace.examples / pace.seconds
        if self.config.tokens_per_example is not None:
            train_metrics["tokens_per_s"] = examples * self.config.tokens_per_example
        train_metrics["flops_per_s"] = flops = examples * self._flops
        peak = self._peak()
        if peak is not None:
            train_metrics["mfu"] = flops / peak

    def _count(self) -> float:
        given = self.config.flops_per_step
        flops = self.trainer.step_flops() if given is None else given
        return flops / max(self.trainer.progress.batch_rows, 1)

    def _peak(self) -> float | None:
        devices = self.trainer.mesh.devices
        peak = self.config.peak_flops_per_device or peak_flops(devices.flat[0].device_kind)
        return None if peak is None else peak * devices.size

    # The clock of training, which stands still during pauses.

    def _begin(self) -> None:
        progress = self.trainer.progress
        self._marks: list[_Mark] = []
        self._row_end = progress.step
        self._known = (progress.step, progress.examples)  # a step, and the rows up to it
        self._passed_s, self._since = 0.0, self._clock()

    def _resume(self) -> None:
        if self._since is None:
            self._since = self._clock()

    def _pause(self) -> None:
        self._passed_s, self._since = self._seconds(), None

    def _seconds(self) -> float:
        return self._passed_s + (0.0 if self._since is None else self._clock() - self._since)

    # What was done by when. ``progress`` counts steps when they are dispatched and examples when
    # they are known to be done, so that full batches tell how many steps that is.

    def _note(self, step_idx: int) -> None:
        """Notes what is done when a row is given out: its own steps at least."""
        progress = self.trainer.progress
        if step_idx >= progress.step:  # every step was waited for
            self._known = (progress.step, progress.examples)
        step, examples = self._known
        rows = max(progress.batch_rows, 1)
        done = max(step + (progress.examples - examples) / rows, step_idx)
        mark = _Mark(done, examples + (done - step) * rows, self._seconds())
        while self._marks and self._marks[-1].steps >= mark.steps:
            self._marks.pop()  # as far, but earlier
        self._marks.append(mark)

    def _settle(self) -> None:
        """Notes that every step is done, before a pause."""
        if self._marks:  # else nothing but the beginning, with its compilation
            self._note(self.trainer.progress.step)

    def _pace(self, start: int, end: int) -> _Mark | None:
        """Returns steps, examples and seconds between two steps, as far as they were measured."""
        marks = self._marks
        first = max(bisect_right(marks, start, key=lambda mark: mark.steps) - 1, 0)
        del marks[:first]  # they are never asked for again
        begin = max(start, marks[0].steps)
        last = marks[min(bisect_left(marks, end, key=lambda mark: mark.steps), len(marks) - 1)]
        measured = last.steps - marks[0].steps
        if end <= begin or measured < (end - start) / 2:
            return None
        a, b = self._at(begin), self._at(end)
        pace = _Mark(*(later - earlier for earlier, later in zip(a, b, strict=True)))
        return pace if pace.seconds > 0 else None

    def _at(self, steps: float) -> _Mark:
        """Returns the mark of a number of steps, on the straight line between two others."""
        marks = self._marks
        after = min(max(bisect_left(marks, steps, key=lambda mark: mark.steps), 1), len(marks) - 1)
        a, b = marks[after - 1], marks[after]
        share = (steps - a.steps) / (b.steps - a.steps)
        return _Mark(*(x + share * (y - x) for x, y in zip(a, b, strict=True)))
