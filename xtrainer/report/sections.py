"""Which parts has the report of a run? Each is a piece of HTML, left out where it is empty."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from xtrainer.config.redact import redact
from xtrainer.report.curves import Panel, place_of
from xtrainer.report.figures import (
    ACCOUNT_TITLES,
    MOST_STARTS,
    Figures,
    ledger_layout,
    ledger_traces,
    timeline_layout,
    timeline_traces,
)
from xtrainer.report.markup import Markup, element, joined, table
from xtrainer.report.run import RunRecord
from xtrainer.report.starts import Start
from xtrainer.report.summary import Result, Summary
from xtrainer.report.words import (
    counted,
    show_bytes,
    show_number,
    show_share,
    show_time,
)

MOST_PANELS = 80
"""Pictures that a page has; names of further metrics are listed."""
_MEANINGS = {
    "step": "taking steps, and waiting for the devices to take them",
    "compile": "compiling the steps",
    "data_wait": "waiting for the loaders",
    "validation": "validations and the test",
    "checkpoint": "copying and writing that training waited for",
    "logging": "loggers and records",
    "callbacks": "callbacks other than checkpoints",
    "init": "making the model, its state and the trainer",
    "restore": "reading a checkpoint",
    "idle": "all else",
}


class Section(Markup):
    """A part of a page.

    Attributes:
        name: Of its element.
        heading: That a link to it says.
    """

    name: str
    heading: str


def section(name: str, title: str, *children: object, link: str | None = None) -> Section:
    """Returns a part of a page.

    Args:
        name: Of its element.
        title: Above it.
        children: What it holds.
        link: What a link to it says; None: the title.
    """
    found = Section(element("section", element("h2", title), *children, id=name))
    found.name, found.heading = name, link or title
    return found


def tiles(figures: Iterable[tuple[str, str]]) -> Markup:
    """Returns the figures at the head of a page, each with what it is."""
    return element(
        "div",
        *(element("div", element("b", value), element("span", what)) for value, what in figures),
        class_="figures",
    )


def head_figures(summary: Summary) -> list[tuple[str, str]]:
    """Returns the figures that tell most of a run."""
    found = []
    known = [row for row in summary.results if row.best is not None]
    for mode in ("val", "test", "train_epoch", "train"):
        wanted = [row for row in known if row.mode == mode]
        if wanted:
            break
    for row in wanted[:2] if known else ():
        if row.best is not None:
            found.append(
                (show_number(row.best), f"best {row.mode} {row.name}, step {row.best_step:,}")
            )
    epochs = "" if not summary.epochs else f", {counted(summary.epochs, 'epoch')}"
    found.append((f"{summary.steps:,}", f"steps{epochs}"))
    if summary.wall_s is not None:
        down = f", {show_time(summary.down_s)} of it down" if summary.down_s >= 1 else ""
        found.append((show_time(summary.wall_s), f"from first to last{down}"))
    if summary.goodput is not None:
        found.append((show_share(summary.goodput), "goodput"))
    if summary.mfu is not None:
        found.append((show_share(summary.mfu), "MFU"))
    if summary.starts:
        lost = f", {counted(summary.lost_steps, 'step')} lost" if summary.lost_steps else ""
        found.append((str(len(summary.starts)), f"start{'s' * (len(summary.starts) > 1)}{lost}"))
    if summary.refused_steps:
        found.append((f"{summary.refused_steps:,}", "refused steps"))
    return found


def results(summary: Summary) -> Section | None:
    """Returns the table of metrics: a line for each, its newest and best value in each set."""
    lines: dict[str, dict[str, Result]] = {}
    for row in summary.results:
        lines.setdefault(place_of(row.name, row.mode)[0], {})[row.mode] = row
    if not lines:
        return None
    # A set with one row has nothing that could be better than its newest value.
    several = {row.mode: False for row in summary.results}
    for row in summary.results:
        several[row.mode] |= row.count > 1
    heads = [name for mode, s in several.items() for name in (mode, *(["best", "at step"] * s))]
    rows = [
        (metric, *(cell for mode, s in several.items() for cell in _values(found.get(mode), s)))
        for metric, found in lines.items()
    ]
    note = element("p", "The newest value of each metric in each set, and its best.", class_="note")
    inner = table(("metric", *heads), rows, range(1, 1 + len(heads)))
    return section("results", "Results", note, inner)


def _values(row: Result | None, several: bool) -> tuple[str, ...]:
    if row is None:
        return ("", "", "") if several else ("",)
    best = ("", "") if row.best is None else (show_number(row.best), f"{row.best_step:,}")
    return (show_number(row.last), *(best if several else ()))


def pictures(
    name: str, title: str, panels: Sequence[Panel], figures: Figures, unit_hours: float
) -> Section | None:
    """Returns a part with a picture for each metric.

    Args:
        name: Of the part.
        title: Its title.
        panels: The metrics.
        figures: Takes them.
        unit_hours: Hours of a unit of the axis of time.
    """
    if not panels:
        return None
    drawn = []
    for index, panel in enumerate(panels[:MOST_PANELS]):
        gaps = counted(panel.gaps, "value is", "values are")
        note = element("span", f"{gaps} not finite", class_="note bad") if panel.gaps else None
        wide = " wide" if index == 0 and name == "metrics" else ""
        place = element("div", id=figures.panel(panel, unit_hours), class_="plot")
        parts = (element("h3", panel.title), note, place)
        drawn.append(element("div", *parts, class_=f"panel{wide}"))
    left = ", ".join(panel.title for panel in panels[MOST_PANELS:])
    more = element("p", f"Not drawn: {left}.", class_="note") if left else None
    link = title.partition(",")[0]
    return section(name, title, element("div", *drawn, class_="grid"), more, link=link)


def ledger(summary: Summary, figures: Figures) -> Section | None:
    """Returns where the time went: bars, and a table that sums to 100 %."""
    total = sum(summary.ledger.values())
    if not total:
        return None
    traces = ledger_traces(summary.starts, summary.ledger)
    count = len(summary.starts)
    bars = 1 + (min(count, MOST_STARTS) if count > 1 else 0)
    layout = ledger_layout(bars)
    rows = []
    for account in ACCOUNT_TITLES:
        if seconds := summary.ledger.get(account, 0.0):
            dot = element("span", class_="dot", style=f"background:var(--{account})")
            share = show_share(seconds / total)
            cells = (joined([dot, ACCOUNT_TITLES[account]]), show_time(seconds), share)
            rows.append((*cells, element("span", _MEANINGS[account], class_="muted")))
    rows.append((element("b", "sum"), show_time(total), show_share(1.0), ""))
    said = [
        "Goodput is the share of this time that went into steps which were kept"
        + ("." if not summary.lost_steps else "; lost steps were taken a second time.")
    ]
    if summary.down_s >= 1:
        said.append(f"{show_time(summary.down_s)} between starts, when nothing ran, is not in it.")
    return section(
        "time",
        "Where the time went",
        element("p", " ".join(said), class_="note"),
        _plot(figures.add(traces, layout), layout),
        table(("", "time", "share", ""), rows, (1, 2)),
        link="Time",
    )


def timeline(summary: Summary, figures: Figures) -> Section | None:
    """Returns what has happened when, and the table of starts."""
    if not summary.starts:
        return None
    traces = timeline_traces(summary.starts)
    layout = timeline_layout(traces)
    lines = [line for start in summary.starts for line in start.lines]
    left = sum(line.facts.get("left_out", 0) for line in lines)
    note = (
        f"Of a long run {left:,} events that came soon after others are left out." if left else ""
    )
    heads = ("start", "began (UTC)", "from step", "to step", "for", "lost", "how it ended")
    rows = [_start_row(number, start) for number, start in enumerate(summary.starts, start=1)]
    return section(
        "timeline",
        "Time line",
        element("p", note, class_="note") if note else None,
        _plot(figures.add(traces, layout), layout),
        table(heads, rows, (0, 2, 3, 4, 5)),
    )


def _start_row(number: int, start: Start) -> tuple[object, ...]:
    stop = start.stop
    ended: object = element("span", "no end was written", class_="bad")
    if stop is not None:
        code = stop.facts["exit_code"]
        ended = f"{str(stop.facts['reason']).lower()}, exit code {code}"
    lost = counted(start.lost_steps, "step") if start.lost_steps else "–"
    return (
        number,
        f"{start.began:%Y-%m-%d %H:%M:%S}",
        f"{start.begin.step:,}",
        f"{start.last_step:,}",
        show_time(start.total_s),
        lost,
        ended,
    )


def checkpoints(run: RunRecord, summary: Summary) -> Section | None:
    """Returns the checkpoints that are there, with what the journal says of them."""
    if not run.saved:
        return None
    told = {
        line.step: line
        for start in summary.starts
        for line in start.lines
        if line.kind == "checkpoint" and line.facts["folder"] == "checkpoints"
    }
    rows = []
    for saved in run.saved:
        line = told.get(saved.step)
        when = ("", "") if line is None else (f"{line.time:%Y-%m-%d %H:%M:%S}",)
        took = show_time(line.facts["took_s"]) if line is not None else ""
        metrics = ", ".join(
            f"{name} {show_number(value)}" for name, value in _numbers(saved.metrics).items()
        )
        rows.append((f"{saved.step:,}", when[0], took, show_bytes(saved.num_bytes), metrics))
    heads = ("step", "committed (UTC)", "took", "size", "metrics")
    inner = table(heads, rows, (0, 2, 3))
    return section("checkpoints", "Checkpoints that are there", inner, link="Checkpoints")


def refused(run: RunRecord) -> Section | None:
    """Returns the records of steps that went wrong."""
    if not run.refused:
        return None
    rows = []
    for step, record in sorted(run.refused.items()):
        error = record.get("error")
        text = f"{error.get('type')}: {error.get('message')}" if isinstance(error, dict) else ""
        rows.append((f"{step:,}", record.get("why", ""), record.get("epoch", ""), text[:500]))
    advice = "`xtrainer replay` takes such a step again, and says in which module NaN begins."
    heads = ("step", "why", "epoch", "error")
    parts = (element("p", advice, class_="note"), table(heads, rows, (0, 2)))
    return section("refused", "Steps that went wrong", *parts)


def config(run: RunRecord) -> Section | None:
    """Returns the configs, to be opened."""
    if not run.config:
        return None
    parts = [
        element(
            "details",
            element("summary", name),
            element("pre", json.dumps(part, indent=2, ensure_ascii=False)),
        )
        for name, part in run.config.items()
        if part is not None
    ]
    return section("config", "Configuration", *parts)


def environment(run: RunRecord, summary: Summary) -> Section | None:
    """Returns where and with what the run was started, and how its starts differ in that."""
    facts = [_environment(start.begin.facts) for start in summary.starts]
    if not facts and run.meta:
        meta = run.meta
        names = ("versions", "mesh", "process_count", "git", "numerics")
        facts = [_environment({name: meta.get(name) for name in names})]
    if not facts:
        return None
    rows = []
    for name, value in facts[-1].items():
        others = dict.fromkeys(f[name] for f in facts if f.get(name, value) != value)
        before = element("span", f" (before: {'; '.join(others)})", class_="fair")
        rows.append((name, joined([value, before if others else None])))
    return section("environment", "Environment", table(("", "newest start"), rows))


def _environment(facts: Mapping[str, Any]) -> dict[str, str]:
    devices = facts.get("devices")
    found: dict[str, Any] = {"host": facts.get("host")}
    if isinstance(devices, dict):
        found["devices"] = f"{devices.get('count')} × {devices.get('kind')}"
    found["mesh"] = _pairs(facts.get("mesh"))
    found["processes"] = facts.get("process_count")
    parameters, flops = facts.get("parameters"), facts.get("flops_per_step")
    found["parameters"] = None if parameters is None else f"{parameters:,}"
    found["operations of a step"] = None if flops is None else f"{flops:.4g}"
    found["code revision"] = facts.get("git") or "not in a git repository"
    found["versions"] = _pairs(facts.get("versions"), " ")
    found["numerics"] = _pairs(facts.get("numerics"))
    return {str(name): str(value) for name, value in found.items() if value is not None}


def parameters(run: RunRecord) -> Section | None:
    """Returns the table of parameters, as the newest checkpoint describes them."""
    rows, total = [], 0
    for path, leaf in run.meta.get("leaves", {}).items():
        if path.startswith("params/"):
            elements = 1
            for size in leaf["shape"]:
                elements *= size
            total += elements
            shape = "×".join(map(str, leaf["shape"])) or "scalar"
            rows.append((path.removeprefix("params/"), shape, leaf["dtype"], f"{elements:,}"))
    if not rows:
        return None
    title = f"{counted(len(rows), 'array')}, {total:,} parameters"
    inner = table(("parameter", "shape", "dtype", "elements"), rows[:2000], (3,))
    return section("parameters", "Parameters", element("details", element("summary", title), inner))


def notes(run: RunRecord, said: Sequence[str]) -> Section | None:
    """Returns what is not in the report, and why."""
    lines = [*(f"No {name}: {why}" for name, why in run.missing.items()), *said]
    if not lines:
        return None
    return section("notes", "Notes", *(element("p", line, class_="note") for line in lines))


def _plot(name: str, layout: Mapping[str, Any]) -> Markup:
    return element("div", id=name, class_="plot", style=f"height:{int(layout['height'])}px")


def _pairs(values: Any, between: str = "=") -> str | None:
    if not isinstance(values, dict):
        return None
    return ", ".join(f"{name}{between}{value}" for name, value in values.items())


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {
        str(redact(name)): float(value)
        for name, value in metrics.items()
        if type(value) in (int, float)
    }
