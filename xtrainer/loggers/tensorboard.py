"""Metrics for TensorBoard: event files in ``<run folder>/tensorboard``, written by tensorboardX."""

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xtrainer.loggers.base import LoggerTool, LoggerToolConfig, NullLogger
from xtrainer.types import JSON, HostMetrics


@dataclass(frozen=True, kw_only=True)
class TensorBoardLoggerConfig(LoggerToolConfig):
    """Event files; look at them with ``tensorboard --logdir RUN_FOLDER``."""

    flush_every_s: int = 30
    """Rows reach the disk when this many seconds have passed since the last time; 0: every row."""

    def create(self, folder: Path | None) -> LoggerTool:
        """Returns the tool; one that does nothing where there is no run folder."""
        if folder is None:
            return NullLogger()
        return TensorBoardLogger(folder / "tensorboard", self.flush_every_s)

    def problems(self) -> list[str]:
        """Returns a sentence for each value that cannot work."""
        problems = super().problems()
        if self.flush_every_s < 0:
            problems.append(f"flush_every_s: found {self.flush_every_s}, expected seconds >= 0.")
        return problems


class TensorBoardLogger(LoggerTool):
    """Writes scalars as ``set/metric`` and texts; each opening begins a new event file.

    tensorboardX's ``SummaryWriter`` is not used: its thread dies silently on a full disk, and then
    its queue of ten events blocks the run for ever; its ``flush`` does not wait for the queue.

    After a write that has failed a file may end within a record, and nothing behind it would be
    read: the next write begins a new file, with what was written since the last flush.

    Args:
        folder: Where the event files go.
        flush_every_s: Seconds between two flushes, at the least.
    """

    def __init__(self, folder: Path, flush_every_s: int = 30) -> None:
        self.folder = folder
        self.flush_every_s = flush_every_s
        self._writer: Any = None
        self._flushed_at: float = 0.0
        self._tags: dict[str, dict[str, str]] = {}  # by set and metric
        self._purge_step: int | None = None
        self._newest = 0
        self._unflushed: list[Any] = []  # events

    def open(self) -> None:
        """Begins an event file."""
        if self._writer is not None:
            return
        # Imported late: it is slow, and a run without TensorBoard does without it.
        from tensorboardX.event_file_writer import EventsWriter

        self.folder.mkdir(parents=True, exist_ok=True)
        # The name holds whole seconds only, and a file of the same name would be overwritten.
        suffix = f".{os.getpid()}.{time.time_ns()}"
        self._writer = EventsWriter(str(self.folder / "events"), suffix)
        if self._purge_step is not None:
            self._purge(self._purge_step)
        with self._or_anew():
            for event in self._unflushed:
                self._writer.write_event(event)
            self._flush()

    def log_config(self, config: Mapping[str, JSON]) -> None:
        """Keeps the config as a text, as indented JSON."""
        lines = json.dumps(config, indent=2, allow_nan=False).splitlines()
        self.log_text("config", "\n".join(f"    {line}" for line in lines), 0)

    def log_metrics(self, metrics: HostMetrics, step: int, mode: str, epoch: int) -> None:
        """Adds one scalar a metric, and the epoch."""
        from tensorboardX.proto import summary_pb2

        summary: Any = summary_pb2.Summary  # type: ignore[attr-defined]
        tags = self._tags.setdefault(mode, {})
        for key in metrics.keys() - tags.keys():
            tags[key] = _tag(f"{mode}/{key}")
        values = [
            summary.Value(tag=tags[key], simple_value=value) for key, value in metrics.items()
        ]
        values.append(summary.Value(tag=_tag(f"epoch/{mode}"), simple_value=epoch))
        self._write(summary(value=values), step)

    def log_text(self, key: str, text: str, step: int) -> None:
        """Adds a text."""
        from tensorboardX.summary import text as make_text

        self._write(make_text(_tag(key), _tag(text)), step)

    def flush(self) -> None:
        """Writes pending events to the disk."""
        if self._writer is not None:
            with self._or_anew():
                self._flush()

    def _flush(self) -> None:
        self._writer.flush()
        self._flushed_at = time.monotonic()
        self._unflushed.clear()

    @contextlib.contextmanager
    def _or_anew(self) -> Iterator[None]:
        """Leaves the event file behind where something in it fails."""
        try:
            yield
        except BaseException:
            writer, self._writer = self._writer, None
            with contextlib.suppress(Exception):
                writer.close()
            raise

    def load_state_dict(self, state: Mapping[str, Any], step: int) -> None:
        """Lets TensorBoard forget what was logged of later steps."""
        own = self._writer is not None
        earlier = len(list(self.folder.glob("events*"))) > own
        if earlier or self._newest > step:
            self._purge_step, self._newest = step + 1, 0
            if own:
                self._purge(step + 1)

    def _purge(self, step: int) -> None:
        from tensorboardX.proto import event_pb2

        log: Any = event_pb2.SessionLog  # type: ignore[attr-defined]
        start = event_pb2.Event(  # type: ignore[attr-defined]
            wall_time=time.time(), step=step, session_log=log(status=log.START)
        )
        with self._or_anew():
            self._writer.write_event(start)
        self._unflushed.append(start)
        self._purge_step = None

    def finalize(self, status: str) -> None:
        """Writes pending events and closes the event file."""
        if self._writer is not None:
            with self._or_anew():
                self._flush()
            self._writer.close()
            self._writer = None

    def _write(self, summary: Any, step: int) -> None:
        self.open()
        self._newest = max(self._newest, step)
        from tensorboardX.proto import event_pb2

        event = event_pb2.Event(  # type: ignore[attr-defined]
            wall_time=time.time(), step=step, summary=summary
        )
        with self._or_anew():
            self._writer.write_event(event)
            if time.monotonic() - self._flushed_at >= self.flush_every_s:
                self._flush()
                return
        self._unflushed.append(event)  # the one that fails is given again by the caller


def _tag(name: str) -> str:
    # Protocol buffers take no lone surrogates.
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
