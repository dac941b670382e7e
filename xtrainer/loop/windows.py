"""When do a step's metrics leave the device? A window later than they are complete."""

import base64
import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from xtrainer.loop.always import always
from xtrainer.metrics import DeviceMetrics, HostWindow, finish, start_to_host, to_host
from xtrainer.parallel import copy_tree, put_global
from xtrainer.step import Flat, StepReport, whole
from xtrainer.types import JSON, HostMetrics

_LOG = logging.getLogger(__name__)
_MAX_PARTS = 64
"""Merging many at once costs a quarter of merging each as it comes."""

Emit = Callable[[HostMetrics, StepReport, int], None]


class _Cut(NamedTuple):
    """A row that has ended and was not given out.

    Attributes:
        window: Its metrics since the last flush.
        report: Of its last step.
        epoch: Of the row.
        step: The last step, as it was dispatched.
        before: The last step of the row before it.
    """

    window: DeviceMetrics
    report: jax.Array
    epoch: int
    step: int
    before: int


class MetricWindows:
    """The metrics of training steps, in windows.

    A window that is cut is copied to the host while the next one is computed and is given to
    ``emit`` when that one is cut, or at a flush; so a row never waits for the device.

    Args:
        new_window: Returns an empty window on the devices.
        emit: Called with (metrics, report of the row's last step, epoch) for each row.

    Attributes:
        current: The metrics of the steps since the last cut or flush.
        step: The number of the newest step in it; set by whoever replaces ``current``.
        given_out: The metrics of the row that is being given out.
        begins: Its first step.
    """

    def __init__(self, new_window: Callable[[], DeviceMetrics], emit: Emit, step: int = 0) -> None:
        self.current: DeviceMetrics | Flat = new_window()
        self.step = step
        self._new_window = new_window
        self._emit = emit
        self._pending: _Cut | None = None
        self._open: HostWindow | None = None  # steps since the last row that are on the host
        self._parts: list[HostWindow] = []  # of the epoch, not merged yet
        self.begins = step + 1
        self._begun = step  # the step that ``current`` begins after
        self._cut = step  # the last step of the last row

    @property
    def has_steps(self) -> bool:
        """Whether there are steps that no :meth:`end_epoch` has counted."""
        return bool(self._parts) or self._pending is not None or self._begun != self.step

    def cut(self, epoch: int, report: jax.Array) -> None:
        """Ends a row with the newest step, which ended as reported, and gives out the one before.

        Args:
            epoch: Of the row.
            report: int32 ``(7,)``, or ``(steps, 7)`` with the newest step last.
        """
        with always(lambda: self._end_row(epoch, report)):
            self._emit_pending()

    def _end_row(self, epoch: int, report: jax.Array) -> None:
        window = whole(self.current)
        start_to_host(window.packed)  # the report is under way already
        self._pending = _Cut(window, report, epoch, self.step, self._cut)
        self._renew()
        self._cut = self.step

    def flush(self) -> None:
        """Gives out the row that is due and fetches what is gathered so far."""
        self._emit_pending()
        if self._begun != self.step:
            part = HostWindow.fetch(whole(self.current))
            self._open = part if self._open is None else self._open.merge(part)
            self._parts.append(part)
            self._renew()

    def end_epoch(self) -> HostMetrics:
        """Returns the means over all accepted steps since the last call."""
        self.flush()
        self._merge_parts()
        parts, self._parts = self._parts, []
        return finish(parts[0], ("mean_nopostfix",)) if parts else {}

    def close(self, newest: StepReport, epoch: int) -> None:
        """Gives out every row, also the last one of fewer steps, which ends with ``newest``."""
        self.flush()
        if self._open is not None and self._cut != self.step:
            self.begins = self._cut + 1
            self._emit_row(self._open, newest, epoch)
        self._open, self._cut = None, self.step

    def state_dict(self) -> JSON:
        """Returns the metrics of the steps that no row holds yet; gives out the row that is due.

        Nothing is added up for it: the rows to come are bit for bit those without it.
        """
        self._emit_pending()
        window = whole(self.current)
        return {
            "names": list(window.layout.names),
            "current": encode_array(to_host(window.packed)),
            "open": None if self._open is None else encode_array(self._open.columns),
            "parts": [encode_array(part.columns) for part in self._parts],
            "steps": [self._begun, self._cut],
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Goes on with the metrics that :meth:`state_dict` returned, of the same metrics only."""
        window = whole(self.current)
        if saved["names"] != list(window.layout.names):
            _LOG.warning(
                "The metrics of this run are not those of the checkpoint: the row and the epoch "
                "under way begin anew."
            )
            return
        packed = decode_array(saved["current"])
        if (packed.shape, packed.dtype) != (window.packed.shape, window.packed.dtype):
            raise ValueError(f"found a window of {packed.dtype}{list(packed.shape)}")
        sharding = window.packed.sharding
        self.current = window.replace(packed=copy_tree(put_global(packed, sharding), sharding))
        parts = [HostWindow(window.layout, decode_array(text)) for text in saved["parts"]]
        self._parts = parts
        text = saved["open"]
        self._open = None if text is None else HostWindow(window.layout, decode_array(text))
        self._begun, self._cut = map(int, saved["steps"])

    def rewind(self, step: int) -> None:
        """Says that steps after one were dispatched and not taken."""
        self.step = step
        self._begun = min(self._begun, step)

    def _renew(self) -> None:
        self.current = self._new_window()
        self._begun = self.step

    def _emit_pending(self) -> None:
        if self._pending is None:
            return
        cut, self._pending = self._pending, None
        part = HostWindow.fetch(cut.window)
        self._parts.append(part)
        if len(self._parts) >= _MAX_PARTS:
            self._merge_parts()
        row = part if self._open is None else self._open.merge(part)
        report = StepReport.fetch(cut.report)
        if report.step < cut.step:  # its last steps were not taken: it is not at its end
            self._open, self._cut = row, cut.before
            return
        self._open = None
        self.begins = cut.before + 1
        self._emit_row(row, report, cut.epoch)

    def _merge_parts(self) -> None:
        self._parts = [functools.reduce(HostWindow.merge, self._parts)] if self._parts else []

    def _emit_row(self, window: HostWindow, report: StepReport, epoch: int) -> None:
        metrics = finish(window)
        self.given_out = window
        if metrics:
            self._emit(metrics, report, epoch)


def encode_array(array: np.ndarray) -> JSON:
    """Returns an array as JSON, every bit of it."""
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")
    return {"shape": list(array.shape), "dtype": array.dtype.str, "data": data}


def decode_array(saved: Mapping[str, Any]) -> np.ndarray:
    """Returns what :func:`encode_array` was given.

    Raises:
        ValueError: If it is something else.

    Example:
        >>> decode_array(encode_array(np.float32([1, 2]))).tolist()
        [1.0, 2.0]
    """
    dtype = np.dtype(saved["dtype"])
    if dtype.kind != "f":
        raise ValueError(f"Found an array of {dtype}, expected floating-point numbers.")
    data = base64.b64decode(saved["data"], validate=True)
    return np.frombuffer(data, dtype).reshape(saved["shape"]).copy()
