"""How far is it? A display of steps, losses and rates that costs a run nothing."""

import contextvars
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax

from xtrainer.callbacks.base import Callback, CallbackConfig
from xtrainer.callbacks.progress_facts import Facts, Pace
from xtrainer.callbacks.progress_screen import Screen, terminal
from xtrainer.callbacks.progress_views import (
    NotebookView,
    PlainView,
    ProgressView,
    TerminalView,
    in_notebook,
)
from xtrainer.callbacks.view import CallbackTrainer
from xtrainer.launch import process_count
from xtrainer.launch.exits import before_leaving
from xtrainer.launch.waits import within
from xtrainer.loggers import NullLogger
from xtrainer.types import HostMetrics

_LOG = logging.getLogger(__name__)
_JOIN_S = 5.0
_LEAVE_S = 0.5
_SHORTEST_S = 0.02
_NOTEBOOK_S = 1.0
_WAITS_S = 2.0
_WAITS = {
    "init": "starting,",
    "compile": "compiling,",
    "data_wait": "waiting for data,",
    "checkpoint": "saving,",
    "logging": "logging,",
    "callbacks": "in a callback,",
}

Style = Literal["auto", "terminal", "notebook", "plain"]


@dataclass(frozen=True, kw_only=True)
class ProgressBarConfig(CallbackConfig):
    """Shows how far the run is; added by ``TrainerConfig.enable_progress_bar``.

    On a terminal some lines at its foot: steps, epoch, loss, learning rate, examples and tokens a
    second, the time left, the newest validation and checkpoint, refused steps. In a notebook an
    output that is replaced. Elsewhere, and with several processes, plain lines: after ten seconds,
    then each when half as much time again has passed, through Python's logging where the run has a
    logger, else on stderr.
    """

    main_process_only: bool = True
    """Whether other processes go without this callback."""
    min_interval_s: float = 0.5
    """Seconds between two drawings; in a notebook 1 at least."""
    max_line_interval_s: float = 300.0
    """Seconds between two plain lines, at the most."""
    style: Style = "auto"
    """What it is shown as; ``auto`` looks where the output goes."""

    def create(self, trainer: CallbackTrainer, data_module: Any = None) -> "ProgressBar":
        """Returns the callback."""
        return ProgressBar(self, trainer, data_module)

    def problems(self) -> list[str]:
        """Returns numbers that cannot be."""
        return super().problems() + [
            f"{name}: found {value}, expected seconds >= 0."
            for name in ("min_interval_s", "max_line_interval_s")
            if (value := getattr(self, name)) < 0
        ]


class ProgressBar(Callback):
    """See :class:`ProgressBarConfig`.

    A thread draws every so often what the host knows by then: a step costs nothing, and nothing is
    fetched. Plain lines come with a row, or with a batch of an evaluation.

    Args:
        config: See there.
        trainer: The trainer.
        data_module: Not used.
        clock: Seconds of any origin.
    """

    config: ProgressBarConfig

    def __init__(
        self,
        config: ProgressBarConfig,
        trainer: CallbackTrainer,
        data_module: Any = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        super().__init__(config, trainer, data_module)
        self.view: ProgressView | None = None
        self._clock = clock
        self._thread: threading.Thread | None = None
        self._ended, self._looking = threading.Event(), threading.Lock()
        self._stay: Callable[[], None] = lambda: None
        self._begin()

    def is_due(self, hook: str, args: Sequence[Any]) -> bool:
        """Returns True: what is shown is to be the newest."""
        return True

    def on_training_start(self) -> None:
        """Begins to draw."""
        self._begin()
        self.view = view = self._make_view()
        view.open()
        if view.in_thread:
            view.draw(self.facts())
            self._ended = threading.Event()
            run = contextvars.copy_context().run  # a notebook knows the cell by it
            self._thread = threading.Thread(
                target=run, args=(self._draw, view), name="progress-bar", daemon=True
            )
            self._thread.start()
            self._stay = before_leaving(self._leave)

    def on_training_log(self, train_metrics: HostMetrics, step_idx: int) -> None:
        """Keeps the newest row for the next drawing."""
        if self.view is not None:
            self._row = dict(train_metrics)
            self._keep_rate(train_metrics, step_idx)
            self._tell()

    def on_validation_epoch_start(self, epoch_idx: int, step_idx: int) -> None:
        """Shows a validation from here on."""
        self._look()
        self._titles.append("validation")

    def on_validation_epoch_end(
        self, eval_metrics: HostMetrics, epoch_idx: int, step_idx: int
    ) -> None:
        """Shows what it has found."""
        self._look()
        self._titles[1:] = []
        self._validation = step_idx, dict(eval_metrics)

    def on_test_epoch_start(self, epoch_idx: int) -> None:
        """Shows a test from here on."""
        self._titles.append("test")

    def on_test_epoch_end(self, test_metrics: HostMetrics, epoch_idx: int) -> None:
        """Shows the run again."""
        self._titles[1:] = []

    def on_checkpoint(self, step_idx: int) -> None:
        """Keeps the step that was saved."""
        self._checkpoint = step_idx, self._clock()

    def finalize(self, status: str) -> None:
        """Leaves one line that says how it ended."""
        view, self.view = self.view, None
        if view is None:
            return
        self._status = status
        self._ended.set()
        if self._thread is None:
            view.close(self.facts(), status)
        else:  # the thread writes the last line: a terminal that takes nothing holds up nobody
            self._thread.join(_JOIN_S)
            self._thread = None
            self._stay()
        view.release()

    def track(self, items: Iterable[Any], title: str, total: int | None) -> Iterator[Any]:
        """Gives the items of an evaluation, and shows how many there were.

        Args:
            items: Its batches.
            title: Of the set.
            total: How many there will be; None: not known.
        """
        self._titles.append(title)
        self._batches = (0, total)
        try:
            for done, item in enumerate(items, start=1):
                yield item
                self._batches = (done, total)
                self._tell()
        finally:
            self._titles[1:] = self._titles[1:-1]
            self._batches = None

    def facts(self) -> Facts:
        """Returns what is known now; from any thread."""
        progress, row, total = self.trainer.progress, self._row, self.trainer.total_steps
        step, now = self._look()
        rate = self._pace.steps_per_s()
        return Facts(
            title=self._titles[-1],
            step=step,
            total=total,
            batches=self._batches,
            epoch=progress.epoch,
            loss=row.get("loss_mean", row.get("loss", row.get("loss_single"))),
            learning_rate=row.get("learning_rate", self._rate),
            steps_per_s=rate,
            examples_per_s=None if rate is None else rate * progress.batch_rows,
            tokens_per_s=row.get("tokens_per_s"),
            left_s=self._pace.left_s(total),
            spent_s=now - self._begun,
            validation=self._validation,
            checkpoint=None if (saved := self._checkpoint) is None else (saved[0], now - saved[1]),
            refused=progress.skipped,
            waits=self._waits(step),
        )

    def _look(self) -> tuple[int, float]:
        """Lets the pace see how far the run is; returns the step and the time."""
        with self._looking:
            step, now = self.trainer.progress.step, self._clock()
            self._pace.look(now, step, trains=len(self._titles) == 1)
        return step, now

    def _begin(self) -> None:
        self._begun, self._first = self._clock(), self.trainer.progress.step
        self._pace = Pace(self._first, self._begun)
        self._titles = ["train"]
        self._batches: tuple[int, int | None] | None = None
        self._row: HostMetrics = {}
        self._rate: float | None = None
        self._rate_at = float("-inf")
        self._validation: tuple[int, HostMetrics] | None = None
        self._checkpoint: tuple[int, float] | None = None
        self._status = "completed"

    def _make_view(self) -> ProgressView:
        style, stream = self.config.style, terminal()
        if style == "auto" and process_count() > 1:
            style = "plain"
        if style == "notebook" or (style == "auto" and in_notebook()):
            return NotebookView()
        if style in ("auto", "terminal") and stream is not None:
            return TerminalView(Screen(stream))
        says_rows = not isinstance(self.trainer.logger, NullLogger)
        return PlainView(self.config.max_line_interval_s, says_rows)

    def _keep_rate(self, metrics: HostMetrics, step: int) -> None:
        """Keeps the learning rate of a row, computed on the CPU, and not for every row."""
        now = self._clock()
        if "learning_rate" in metrics or now - self._rate_at < self.config.min_interval_s:
            return
        self._rate_at = now
        try:
            with jax.default_device(jax.local_devices(backend="cpu")[0]):
                self._rate = self.trainer.learning_rate(step)
        except RuntimeError:  # JAX_PLATFORMS leaves the CPU out
            self._rate = None

    def _waits(self, step: int) -> tuple[str, float] | None:
        """Returns what the run has been at for a while, where that is no step and no evaluation."""
        account, since = self.trainer.ledger.now()
        seconds = time.perf_counter() - since
        if step == self._first and account == "step":
            account = "compile"
        if seconds < _WAITS_S or account not in _WAITS:
            return None
        return _WAITS[account], seconds

    def _tell(self) -> None:
        if self.view is not None and self._thread is None:
            self.view.draw(self.facts())

    def _draw(self, view: ProgressView) -> None:
        least = _NOTEBOOK_S if isinstance(view, NotebookView) else _SHORTEST_S
        try:
            while not self._ended.wait(max(self.config.min_interval_s, least)):
                view.draw(self.facts())
            view.close(self.facts(), self._status)
        except Exception:  # the terminal is gone: the run goes on without
            _LOG.debug("The progress cannot be shown any more.", exc_info=True)
            view.release()

    def _leave(self) -> None:
        """Tidies the terminal up for a program that ends at once."""
        view = self.view
        if isinstance(view, TerminalView):
            within(_LEAVE_S, view.screen.leave)


def tracked(
    items: Iterable[Any], callbacks: Sequence[Callback], wanted: bool, **kwargs: Any
) -> Iterable[Any]:
    """Returns items with a bar: within a run's own display, in a notebook, or tqdm's on a terminal.

    Args:
        items: Any iterable.
        callbacks: Those of the trainer.
        wanted: Whether anything is drawn at all.
        kwargs: For tqdm; ``desc`` and ``total`` count everywhere.
    """
    title, total = str(kwargs.get("desc") or ""), kwargs.get("total")
    shown = [c for c in callbacks if isinstance(c, ProgressBar) and c.view is not None]
    if wanted and shown:
        return shown[0].track(items, title, total)
    if wanted and in_notebook():
        return _in_notebook(items, title, total)
    from tqdm import tqdm  # not with the package: it imports much

    return tqdm(items, disable=None if wanted else True, **kwargs)


def _in_notebook(items: Iterable[Any], title: str, total: int | None) -> Iterator[Any]:
    """Gives items under a bar that is drawn once a second, and is gone at the end."""
    view, drawn_at = NotebookView(), time.monotonic()
    try:
        for done, item in enumerate(items, start=1):
            yield item
            if time.monotonic() - drawn_at > _NOTEBOOK_S:
                view.draw(Facts(title=title, batches=(done, total)))
                drawn_at = time.monotonic()
    finally:
        view.clear()
