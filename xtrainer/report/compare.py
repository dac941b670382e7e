"""How do runs differ? Their curves over each other, and tables of what is not the same."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from xtrainer.report import sections
from xtrainer.report.curves import Curve, Panel, panels_of, thin
from xtrainer.report.figures import ACCOUNT_TITLES, Figures
from xtrainer.report.markup import element, table
from xtrainer.report.page import THINNED, TITLES, Page, page_header, unit_of_time
from xtrainer.report.run import RunRecord
from xtrainer.report.summary import Summary, summarize
from xtrainer.report.words import show_number, show_share, show_time

MOST_RUNS = 8
"""Runs that are compared at once: as many as there are colours."""
_DASHES = {"train": "dot", "train_epoch": "dot"}


def names_of(runs: Sequence[RunRecord]) -> list[str]:
    """Returns a name for each run; with more of its path where folders are called the same.

    Example:
        >>> from pathlib import Path
        >>> names_of([RunRecord(Path("/r/a/1")), RunRecord(Path("/r/b/1"))])
        ['a/1', 'b/1']
    """
    depth = 1
    paths = [run.folder.parts for run in runs]
    names = ["/".join(path[-depth:]) for path in paths]
    while len(set(names)) < len(set(paths)):
        depth += 1
        names = ["/".join(path[-depth:]) for path in paths]
    return names


def comparison_page(runs: Sequence[RunRecord]) -> Page:
    """Returns a page that compares runs, which are between two and ``MOST_RUNS``."""
    names, figures = names_of(runs), Figures()
    summaries = [summarize(run) for run in runs]
    panels, colours = merged(runs, names)
    said = [THINNED] if thin(panels) else []
    unit, unit_hours = unit_of_time(panels)
    shown = [
        _results(names, summaries),
        *(
            _pictures(group, [p for p in panels if p.group == group], colours, figures, unit_hours)
            for group in TITLES
        ),
        _times(names, summaries),
        _configs(names, runs),
        _notes(names, runs, said),
    ]
    parts = [part for part in shown if part is not None]
    legend = [
        (f"{summary.status.word}", f"{name}: {summary.steps:,} steps")
        for name, summary in zip(names, summaries, strict=True)
    ]
    text = "Validation is drawn in full lines, training in dotted ones."
    titled = element("div", element("h1", f"{len(runs)} runs compared"), class_="title")
    head = [titled, element("p", text), sections.tiles(legend)]
    header = page_header(head, parts, bool(panels))
    return Page("Runs compared", header, parts, figures, f"{unit} since the start of each run")


def merged(runs: Sequence[RunRecord], names: Sequence[str]) -> tuple[list[Panel], dict[str, str]]:
    """Returns the pictures of all runs, and the colour of each curve by its name."""
    panels: dict[tuple[str, str], Panel] = {}
    colours: dict[str, str] = {}
    for index, (run, name) in enumerate(zip(runs, names, strict=True)):
        for panel in panels_of(run):
            if panel.title.endswith("by parameter"):
                continue
            shared = panels.setdefault((panel.group, panel.title), Panel(panel.title, panel.group))
            for curve in panel.curves:
                if not curve.left:
                    label = f"{name}, {curve.name}"
                    colours[label] = f"@c{index % MOST_RUNS + 1}"
                    points = (curve.steps, curve.hours, curve.values)
                    shared.curves.append(Curve(label, curve.mode, *points))
    order = list(TITLES)
    return sorted(panels.values(), key=lambda panel: order.index(panel.group)), colours


def config_differences(configs: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Returns the settings that are not the same in all configs, by their dotted paths.

    Example:
        >>> config_differences([{"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2}])
        [('a.b', ['1', '3'])]
    """
    flat = [_flat(config) for config in configs]
    paths = dict.fromkeys(path for one in flat for path in one)
    rows = [(path, [one.get(path, "–") for one in flat]) for path in paths]
    return [(path, values) for path, values in rows if len(set(values)) > 1]


def _flat(value: Any, path: str = "") -> dict[str, str]:
    if isinstance(value, dict) and value:
        items = [(str(key), one) for key, one in value.items()]
    elif isinstance(value, list) and any(isinstance(one, dict | list) for one in value):
        items = [(str(index), one) for index, one in enumerate(value)]
    else:
        return {path: json.dumps(value, ensure_ascii=False)[:300]}
    found: dict[str, str] = {}
    for key, one in items:
        found |= _flat(one, f"{path}.{key}" if path else key)
    return found


def _results(names: Sequence[str], summaries: Sequence[Summary]) -> sections.Section | None:
    found = [{(row.mode, row.name): row for row in one.results} for one in summaries]
    rows = []
    for mode, name in dict.fromkeys(key for one in found for key in one):
        cells: list[object] = []
        for one in found:
            row = one.get((mode, name))
            newest = "–" if row is None else show_number(row.last)
            best = "" if row is None or row.best is None else show_number(row.best)
            cells += [newest, best]
        rows.append((mode, name, *cells))
    if not rows:
        return None
    heads = [text for name in names for text in (f"{name}, newest", "best")]
    numbers = range(2, 2 + len(heads))
    return sections.section("results", "Results", table(("set", "metric", *heads), rows, numbers))


def _pictures(
    group: str,
    panels: Sequence[Panel],
    colours: Mapping[str, str],
    figures: Figures,
    unit_hours: float,
) -> sections.Section | None:
    drawn = []
    for panel in panels[: sections.MOST_PANELS]:
        traces = [
            figures.trace(c, colours[c.name], unit_hours, _DASHES.get(c.mode, "solid"))
            for c in panel.curves
        ]
        name = figures.add([*traces], {"showlegend": True}, switches=True)
        parts = (element("h3", panel.title), element("div", id=name, class_="plot"))
        wide = " wide" if not drawn and group == "metrics" else ""
        drawn.append(element("div", *parts, class_=f"panel{wide}"))
    if not drawn:
        return None
    link = TITLES[group].partition(",")[0]
    return sections.section(group, TITLES[group], element("div", *drawn, class_="grid"), link=link)


def _times(names: Sequence[str], summaries: Sequence[Summary]) -> sections.Section:
    def shown(value: float | None, how: Any) -> str:
        return "–" if value is None else how(value)

    rows: list[tuple[object, ...]] = [
        ("steps", *(f"{one.steps:,}" for one in summaries)),
        ("from first to last", *(shown(one.wall_s, show_time) for one in summaries)),
        ("starts", *(str(len(one.starts)) for one in summaries)),
        ("lost steps", *(f"{one.lost_steps:,}" for one in summaries)),
        ("refused steps", *(f"{one.refused_steps:,}" for one in summaries)),
        ("goodput", *(shown(one.goodput, show_share) for one in summaries)),
        ("MFU", *(shown(one.mfu, show_share) for one in summaries)),
    ]
    for account, title in ACCOUNT_TITLES.items():
        seconds = [one.ledger.get(account, 0.0) for one in summaries]
        if any(seconds):
            rows.append((f"time: {title}", *map(show_time, seconds)))
    inner = table(("", *names), rows, range(1, len(names) + 1))
    return sections.section("time", "Course and time", inner)


def _configs(names: Sequence[str], runs: Sequence[RunRecord]) -> sections.Section:
    rows = [(path, *values) for path, values in config_differences([run.config for run in runs])]
    same = element("p", "The configs are the same.", class_="note")
    inner = table(("setting", *names), rows) if rows else same
    return sections.section("config", "Settings that differ", inner)


def _notes(
    names: Sequence[str], runs: Sequence[RunRecord], said: Sequence[str]
) -> sections.Section | None:
    lines = [
        f"{name} has no {part}: {why}"
        for name, run in zip(names, runs, strict=True)
        for part, why in run.missing.items()
    ]
    lines += said
    if not lines:
        return None
    return sections.section("notes", "Notes", *(element("p", x, class_="note") for x in lines))
