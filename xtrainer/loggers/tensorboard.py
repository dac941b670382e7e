"""What TensorBoard shows: event files in ``<run folder>/tensorboard``, written by tensorboardX."""

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xtrainer.loggers.base import LoggerTool, LoggerToolConfig, NullLogger
from xtrainer.loggers.media import Cell, encode_png, table_markdown
from xtrainer.loggers.settings import Setting, flat_settings
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
    """Writes scalars as ``set/metric``, texts, images, histograms and the settings of the run.

    Settings and the best values are shown in the tab HPARAMS; TensorBoard keeps those settings that
    it finds first in the folder of a run, which are those that the run began with.

    Each opening begins a new event file.

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
        self._began_at = 0
        self._is_session = False
        self._said: dict[str, str] = {}
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
        """Keeps the config as a text, as indented JSON, and its values as settings."""
        self._log_once("config", json.dumps(config, indent=2))
        self._write(_session_start(flat_settings(config)), 0)
        self._is_session = True

    def log_model(self, table: str) -> None:
        """Adds the table of parameters as the text ``parameters``."""
        self._log_once("parameters", table)

    def _log_once(self, key: str, text: str) -> None:
        """Adds a text where a run begins, unless training that goes on says the same again."""
        if self._said.get(key) != text:
            lines = (f"    {line}" for line in text.splitlines())  # literally, in Markdown
            self.log_text(key, "\n".join(lines), self._began_at)
            self._said[key] = text

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

    def log_image(self, key: str, image: np.ndarray, step: int) -> None:
        """Adds an image."""
        from tensorboardX.proto import summary_pb2

        summary: Any = summary_pb2.Summary  # type: ignore[attr-defined]
        height, width, channels = image.shape
        made = summary.Image(
            height=height, width=width, colorspace=channels, encoded_image_string=encode_png(image)
        )
        self._write(summary(value=[summary.Value(tag=_tag(key), image=made)]), step)

    def log_histogram(self, key: str, counts: np.ndarray, edges: np.ndarray, step: int) -> None:
        """Adds a histogram; its sums are those of the middles of the bins."""
        from tensorboardX.summary import histogram_raw

        middles = (edges[:-1] + edges[1:]) / 2
        sums = counts.sum(), counts @ middles, counts @ middles**2
        # The first bucket reaches down to the lowest number there is: it is to be empty.
        limits, bins = edges.tolist(), [0.0, *counts.tolist()]
        self._write(histogram_raw(_tag(key), edges[0], edges[-1], *sums, limits, bins), step)

    def log_table(
        self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], step: int
    ) -> None:
        """Adds a table as a text."""
        self.log_text(key, table_markdown(columns, rows), step)

    def log_best(self, metrics: HostMetrics, step: int) -> None:
        """Adds the scalars ``best/METRIC``, which stand in HPARAMS beside the newest values."""
        from tensorboardX.proto import summary_pb2

        summary: Any = summary_pb2.Summary  # type: ignore[attr-defined]
        values = [
            summary.Value(tag=_tag(f"best/{key}"), simple_value=value)
            for key, value in metrics.items()
        ]
        self._write(summary(value=values), step)

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
            self._purge_step, self._newest, self._began_at = step + 1, 0, step + 1
            self._said.clear()
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
        """Writes pending events and closes the event file.

        The end of a run that is completed is noted; others may go on, and only the first would
        count.
        """
        if self._writer is not None:
            if status == "completed" and self._is_session:
                self._write(_session_end(), 0)
                self._is_session = False
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


def _session_start(settings: Mapping[str, Setting]) -> Any:
    """Returns what makes a folder a run of the tab HPARAMS."""
    from tensorboardX.proto.plugin_hparams_pb2 import SessionStartInfo  # type: ignore[attr-defined]

    start = SessionStartInfo(start_time_secs=time.time())
    for name, value in settings.items():
        field = start.hparams[_tag(name)]
        if isinstance(value, bool):
            field.bool_value = value
        elif isinstance(value, int | float):
            field.number_value = value
        else:
            field.string_value = _tag(value)
    return _session("session_start_info", start)


def _session_end() -> Any:
    from tensorboardX.proto.api_pb2 import Status  # type: ignore[attr-defined]
    from tensorboardX.proto.plugin_hparams_pb2 import SessionEndInfo  # type: ignore[attr-defined]

    end = SessionEndInfo(status=Status.Value("STATUS_SUCCESS"), end_time_secs=time.time())
    return _session("session_end_info", end)


def _session(name: str, content: Any) -> Any:
    """Returns a summary of the plug-in for hyperparameters.

    That of an experiment is left out: TensorBoard takes the first of all runs for all of them, and
    without one finds out itself which settings and metrics there are.
    """
    from tensorboardX.proto import summary_pb2
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData  # type: ignore[attr-defined]

    summary: Any = summary_pb2.Summary  # type: ignore[attr-defined]
    metadata: Any = summary_pb2.SummaryMetadata  # type: ignore[attr-defined]
    data = HParamsPluginData(version=0, **{name: content}).SerializeToString()
    plugin = metadata(plugin_data=metadata.PluginData(plugin_name="hparams", content=data))
    return summary(value=[summary.Value(tag=f"_hparams_/{name}", metadata=plugin)])


def _tag(name: str) -> str:
    # Protocol buffers take no lone surrogates.
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
