"""How much, over how many? Weighted sums kept on the device, finished on the host.

Synopsis:
    layout = MetricLayout.of({"loss": ("mean",)})
    window = DeviceMetrics.zeros(layout)
    window = accumulate(window, sums, counts, accept=True)     # inside jit
    finish(HostWindow.fetch(window))                           # {"loss_mean": 2.3}
"""

from xtrainer.metrics.accumulate import LOG_MODES, DeviceMetrics, MetricLayout, accumulate
from xtrainer.metrics.direction import (
    Direction,
    DirectionMode,
    better_when,
    direction_of,
    mode_problems,
    warn_of_unknown_direction,
)
from xtrainer.metrics.history import History, Row
from xtrainer.metrics.host import HostWindow, finish, start_to_host, to_host
from xtrainer.metrics.norms import global_norm, norms_per_param
from xtrainer.metrics.summary import parameter_table, spec_text

__all__ = [
    "LOG_MODES",
    "DeviceMetrics",
    "Direction",
    "DirectionMode",
    "History",
    "HostWindow",
    "MetricLayout",
    "Row",
    "accumulate",
    "better_when",
    "direction_of",
    "finish",
    "global_norm",
    "mode_problems",
    "norms_per_param",
    "parameter_table",
    "spec_text",
    "start_to_host",
    "to_host",
    "warn_of_unknown_direction",
]
