"""What is drawn? Figures for plotly.js as JSON; colours are names that the page's scheme fills in.

A ``color`` that begins with ``@`` is the name of one in ``style.py``; ``{"x": NAME}`` of a trace
names the points in ``axes``, by step and by time, which curves of the same rows share.
"""

import html
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from xtrainer.report.curves import Curve, Panel
from xtrainer.report.starts import Start
from xtrainer.report.words import show_bytes, show_share, show_time
from xtrainer.types import JSON

COLOURS = {"train": "@c1", "train_epoch": "@c1", "val": "@c2", "test": "@c3"}
_MANY = tuple(f"@c{i}" for i in range(1, 9))
ACCOUNT_TITLES = {
    "step": "steps",
    "compile": "compile",
    "data_wait": "wait for data",
    "validation": "validation",
    "checkpoint": "checkpoints",
    "logging": "logging",
    "callbacks": "callbacks",
    "init": "init",
    "restore": "restore",
    "idle": "idle",
}
"""The accounts of a ledger in the order in which they are shown."""
MOST_STARTS = 12
"""Starts that have a bar of their own; of more, the newest."""
_LANES = ("steps refused", "checkpoints", "validations", "runs")


class Figures:
    """Collects the figures of a page.

    Attributes:
        axes: Points by steps and by time, by name.
        plots: The figures, by the id of the element that they are drawn in.
    """

    def __init__(self) -> None:
        self.axes: dict[str, JSON] = {}
        self.plots: dict[str, JSON] = {}
        self._names: dict[tuple[Any, ...], str] = {}

    def add(self, traces: list[JSON], layout: dict[str, JSON], switches: bool = False) -> str:
        """Adds a figure and returns its id.

        Args:
            traces: Of plotly.js.
            layout: Likewise.
            switches: Whether its points can be shown by time as well.
        """
        name = f"plot-{len(self.plots) + 1}"
        self.plots[name] = {"traces": traces, "layout": layout, "switches": switches}
        return name

    def axis(self, curve: Curve, unit_hours: float) -> str:
        """Returns the name of a curve's points."""
        key = (tuple(curve.steps), tuple(curve.hours))
        if key not in self._names:
            self._names[key] = f"x{len(self._names) + 1}"
            times = [None if h is None else _rounded(h / unit_hours) for h in curve.hours]
            self.axes[self._names[key]] = {"step": list(curve.steps), "time": times}
        return self._names[key]

    def panel(self, panel: Panel, unit_hours: float) -> str:
        """Adds a picture of metrics."""
        traces: list[JSON] = []
        many = [curve for curve in panel.curves if curve.mode == "many"]
        others: dict[str, str] = {}
        for curve in sorted(panel.curves, key=lambda curve: not curve.left):  # these lie below
            colour = COLOURS.get(curve.mode)
            if colour is None:
                colour = others.setdefault(curve.name, _MANY[(3 + len(others)) % len(_MANY)])
            if curve in many:
                colour = _MANY[many.index(curve) % len(_MANY)]
            traces.append(self.trace(curve, "@faint" if curve.left else colour, unit_hours))
        layout: dict[str, JSON] = {"showlegend": len(traces) > 1}
        return self.add(traces, layout, switches=True)

    def trace(
        self, curve: Curve, colour: str, unit_hours: float, dash: str | None = None
    ) -> dict[str, JSON]:
        """Returns a curve as a trace.

        Args:
            curve: Its points.
            colour: The name of one.
            unit_hours: Hours of a unit of the axis of time.
            dash: Of the line; None: by the set.
        """
        few = len(curve.values) <= 60 and curve.mode != "train"
        left_dash = "dot" if curve.left or curve.mode == "train_epoch" else "solid"
        return {
            "type": "scatter",
            "mode": "lines+markers" if few or len(curve.values) == 1 else "lines",
            "name": plain(curve.name),
            "x": {"x": self.axis(curve, unit_hours)},
            "y": [None if y is None else _rounded(y) for y in curve.values],
            "line": {"color": colour, "width": 1.75, "dash": dash or left_dash},
            "marker": {"color": colour, "size": 5},
            "legendrank": 2000 if curve.left else 1000,
            "hovertemplate": "%{y:.5g}",
        }


def plain(text: str) -> str:
    """Returns a text in which plotly.js finds no markup of its own, such as links.

    Example:
        >>> plain("<a>&b")
        '&lt;a&gt;&amp;b'
    """
    text = text if len(text) <= 60 else f"{text[:28]}...{text[-29:]}"
    return html.escape(text, quote=False)


def ledger_traces(starts: Sequence[Start], total: dict[str, float]) -> list[JSON]:
    """Returns stacked bars: the whole run, and each start where there are several."""
    rows = [("all starts" if len(starts) > 1 else "the run", total)]
    if len(starts) > 1:
        first = max(len(starts) - MOST_STARTS, 0)
        numbered = list(enumerate(starts, start=1))[first:]
        rows += [(f"start {number}", start.seconds) for number, start in numbered]
    traces: list[JSON] = []
    for account in ACCOUNT_TITLES:
        seconds = [max(row.get(account, 0.0), 0.0) for _, row in rows]
        wholes = [sum(max(s, 0.0) for s in row.values()) for _, row in rows]
        shares = [s / whole if whole else 0.0 for s, whole in zip(seconds, wholes, strict=True)]
        if any(seconds):
            traces.append(
                {
                    "type": "bar",
                    "orientation": "h",
                    "name": ACCOUNT_TITLES[account],
                    "y": [name for name, _ in rows],
                    "x": [_rounded(100 * share) for share in shares],
                    "text": [
                        f"{show_time(s)}, {show_share(share)}"
                        for s, share in zip(seconds, shares, strict=True)
                    ],
                    "textposition": "none",
                    "marker": {"color": f"@{account}"},
                    "hovertemplate": "%{text}",
                }
            )
    return traces


def ledger_layout(rows: int) -> dict[str, JSON]:
    """Returns the layout of those bars."""
    return {
        "barmode": "stack",
        "height": 108 + 30 * rows,
        "showlegend": True,
        "hovermode": "closest",
        "legend": {"traceorder": "normal"},
        "xaxis": {"range": [0, 100], "ticksuffix": " %", "title": {"text": ""}},
        "yaxis": {"autorange": "reversed", "showgrid": False, "automargin": True},
    }


def timeline_traces(starts: Sequence[Start]) -> list[JSON]:
    """Returns what has happened, in lanes over the time of day (UTC)."""
    traces: list[JSON] = [_spans("running", "@step", [_whole(start) for start in starts])]
    lost = [
        (start.kept_until, start.last_time, f"{start.killed_off:,} steps lost, taken again")
        for start in starts
        if start.kept_until is not None
    ]
    if lost:
        traces.append(_spans("lost work", "@lost", lost))
    lines = [line for start in starts for line in start.lines]
    for name, lane, colour, symbol, points in (
        ("validation", "validations", "@c2", "circle", _at(lines, "validation")),
        ("checkpoint", "checkpoints", "@checkpoint", "diamond", _saves(lines, failed=False)),
        ("failed save", "checkpoints", "@lost", "x", _saves(lines, failed=True)),
        ("refused", "steps refused", "@lost", "x", _refusals(lines)),
        ("went back", "runs", "@c3", "triangle-left", _at(lines, "rollback", "back to ")),
    ):
        if points:
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": name,
                    "x": [time for time, _ in points],
                    "y": [lane] * len(points),
                    "text": [text for _, text in points],
                    "marker": {"color": colour, "symbol": symbol, "size": 8},
                    "hovertemplate": "%{text}<br>%{x|%Y-%m-%d %H:%M:%S}",
                }
            )
    return traces


def timeline_layout(traces: Sequence[Any]) -> dict[str, JSON]:
    """Returns the layout of the lanes that those traces have."""
    used = {lane for trace in traces for lane in trace["y"]}
    lanes: list[JSON] = [lane for lane in _LANES if lane in used]
    return {
        "barmode": "overlay",
        "height": 96 + 34 * len(lanes),
        "showlegend": True,
        "hovermode": "closest",
        "xaxis": {"type": "date", "title": {"text": ""}},
        "yaxis": {
            "type": "category",
            "categoryorder": "array",
            "categoryarray": lanes,
            "range": [-0.6, len(lanes) - 0.4],
            "showgrid": False,
            "automargin": True,
            "fixedrange": True,
        },
    }


def _spans(name: str, colour: str, spans: Sequence[tuple[Any, datetime, str]]) -> dict[str, JSON]:
    return {
        "type": "bar",
        "orientation": "h",
        "name": name,
        "y": ["runs"] * len(spans),
        "base": [_iso(begin) for begin, _, _ in spans],
        "x": [max((end - begin) / timedelta(milliseconds=1), 1.0) for begin, end, _ in spans],
        "text": [text for _, _, text in spans],
        "textposition": "none",
        "width": 0.5,
        "marker": {"color": colour},
        "hovertemplate": "%{text}",
    }


def _whole(start: Start) -> tuple[datetime, datetime, str]:
    text = f"steps {start.begin.step:,} to {start.last_step:,}"
    return start.began, start.last_time, text


def _at(lines: Sequence[Any], kind: str, before: str = "") -> list[tuple[str, str]]:
    return [(_iso(x.time), f"{before}step {x.step:,}") for x in lines if x.kind == kind]


def _saves(lines: Sequence[Any], failed: bool) -> list[tuple[str, str]]:
    found = []
    for line in lines:
        if line.kind == "checkpoint" and (line.facts["problem"] is not None) == failed:
            size, took = show_bytes(line.facts["bytes"]), show_time(line.facts["took_s"])
            found.append((_iso(line.time), f"step {line.step:,}: {size} in {took}"))
    return found


def _refusals(lines: Sequence[Any]) -> list[tuple[str, str]]:
    found = []
    for line in lines:
        if line.kind == "refused":
            count, first = line.facts["count"], line.facts["first"]
            steps = f"step {first:,}" if count == 1 else f"{count:,} from step {first:,} on"
            found.append((_iso(line.time), steps))
    return found


def _iso(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S.%f}"[:-3]


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
