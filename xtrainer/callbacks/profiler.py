"""Where does the time of a step go? A trace of a few steps, for TensorBoard or Perfetto."""

from dataclasses import dataclass
from typing import Any

import jax

from xtrainer.callbacks.base import Callback, CallbackConfig
from xtrainer.callbacks.view import CallbackTrainer
from xtrainer.types import HostMetrics


@dataclass(frozen=True, kw_only=True)
class JaxProfilerConfig(CallbackConfig):
    """Traces a few steps with ``jax.profiler``, on the main process."""

    main_process_only: bool = True
    """Whether other processes go without this callback."""
    profile_first_step: int = 10
    """Step of this run, counted from its start, at which the trace begins; the first compile."""
    profile_n_steps: int = 5
    """Steps in the trace."""
    log_path: str | None = None
    """Folder of the trace; None: ``profile`` in the run folder."""

    def create(self, trainer: CallbackTrainer, data_module: Any = None) -> "JaxProfiler":
        """Returns the callback."""
        return JaxProfiler(self, trainer, data_module)

    def problems(self) -> list[str]:
        """Returns numbers that cannot be."""
        return super().problems() + [
            f"{name}: found {value}, expected a number >= 1."
            for name in ("profile_first_step", "profile_n_steps")
            if (value := getattr(self, name)) < 1
        ]


class JaxProfiler(Callback):
    """See :class:`JaxProfilerConfig`.

    Raises:
        ConfigError: If there is no folder to write to.
    """

    config: JaxProfilerConfig

    def __init__(
        self, config: JaxProfilerConfig, trainer: CallbackTrainer, data_module: Any = None
    ) -> None:
        super().__init__(config, trainer, data_module)
        self.folder = self.own_folder(config.log_path, "profile")
        self._first = 0  # the step that this run began behind
        self._tracing = False

    def on_training_start(self) -> None:
        """Begins the count of steps."""
        self._first = self.trainer.progress.step
        self._switch(self._first)

    def on_training_step(self, step_metrics: HostMetrics, epoch_idx: int, step_idx: int) -> None:
        """Starts or stops the trace between two steps."""
        self._switch(step_idx)

    def next_step(self, step: int) -> int | None:
        """Returns the next of the two steps that begin and end the trace."""
        return min((mark for mark in self._marks() if mark > step), default=None)

    def finalize(self, status: str) -> None:
        """Ends a trace that the end of the run has cut short."""
        self._stop()

    def _marks(self) -> tuple[int, int]:
        before = self._first + self.config.profile_first_step - 1
        return before, before + self.config.profile_n_steps

    def _switch(self, step: int) -> None:
        start, end = self._marks()
        if step == start:
            jax.block_until_ready(self.trainer.state)
            jax.profiler.start_trace(str(self.folder))
            self._tracing = True
        elif step == end:
            self._stop()

    def _stop(self) -> None:
        if self._tracing:
            jax.block_until_ready(self.trainer.state)
            self._tracing = False
            jax.profiler.stop_trace()
