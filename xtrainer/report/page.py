"""How is a report written? As one file of HTML that asks for nothing from elsewhere."""

import base64
import hashlib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from xtrainer.checkpoint.items import library_versions
from xtrainer.errors import require
from xtrainer.report import sections
from xtrainer.report.curves import Panel, panels_of, thin
from xtrainer.report.figures import Figures
from xtrainer.report.markup import Markup, element, joined, script_json
from xtrainer.report.run import RunRecord
from xtrainer.report.script import SCRIPT
from xtrainer.report.style import STYLE
from xtrainer.report.summary import Summary, summarize

TITLES = {
    "metrics": "Metrics",
    "optimization": "Optimization, learning rate and norms",
    "intermediates": "Intermediates",
    "speed": "Speed",
}


class Page(NamedTuple):
    """A page that can be shown.

    Attributes:
        title: Of the window.
        header: Above the parts.
        parts: What it shows.
        figures: What it draws.
        time_title: Of the axis of time.
    """

    title: str
    header: Markup
    parts: list[sections.Section]
    figures: Figures
    time_title: str


def plotly_js() -> str:
    """Returns the source of plotly.js.

    Raises:
        MissingDependencyError: If plotly is not installed.
    """
    return require("plotly.offline", "report").get_plotlyjs()


def render(page: Page) -> str:
    """Returns a page as the text of a file.

    What it may run is said at its head by checksums, and that it may load nothing: so no text that
    comes from the files of a run can do either.
    """
    scripts = [plotly_js(), SCRIPT]
    sums = " ".join(f"'sha256-{_checksum(text)}'" for text in scripts)
    policy = (
        f"default-src 'none'; script-src {sums}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
    data = {"axes": page.figures.axes, "plots": page.figures.plots, "time_title": page.time_title}
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", page.title),
        element("style", Markup(STYLE)),
    )
    now = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    footer = f"Written {now} by xtrainer {library_versions()['xtrainer']}."
    body = element(
        "body",
        page.header,
        element("main", *page.parts, element("footer", footer)),
        element("script", script_json(data), type="application/json", id="data"),
        *(element("script", Markup(text)) for text in scripts),
    )
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def run_page(run: RunRecord, summary: Summary | None = None) -> Page:
    """Returns the report of a run.

    Args:
        run: Of :func:`read_run`.
        summary: Of it; None: made here.
    """
    summary = summary or summarize(run)
    figures, panels = Figures(), panels_of(run)
    said = [THINNED] if thin(panels) else []
    if run.superseded:
        said.append("Grey dotted curves are rows of steps that were taken again after a restart.")
    unit, unit_hours = unit_of_time(panels)
    parts = [
        sections.results(summary),
        *(
            sections.pictures(
                group, title, [p for p in panels if p.group == group], figures, unit_hours
            )
            for group, title in TITLES.items()
        ),
        sections.ledger(summary, figures),
        sections.timeline(summary, figures),
        sections.checkpoints(run, summary),
        sections.refused(run),
        sections.config(run),
        sections.environment(run, summary),
        sections.parameters(run),
        sections.notes(run, said),
    ]
    shown = [part for part in parts if part is not None]
    status = summary.status
    pill = element("span", status.word, class_=f"status {status.tone}")
    titled = element("div", element("h1", run.name), pill, class_="title")
    header = page_header(
        [
            titled,
            element("div", run.folder, class_="path"),
            element("p", status.text),
            sections.tiles(sections.head_figures(summary)),
        ],
        shown,
        bool(panels),
    )
    return Page(f"{run.name} – run report", header, shown, figures, f"{unit} since the first start")


THINNED = (
    "Long curves are drawn by the smallest and the largest value of each stretch of steps, so that "
    "this file stays small; metrics.jsonl has all of them."
)


def page_header(
    children: Sequence[Markup], parts: Iterable[sections.Section], has_curves: bool
) -> Markup:
    """Returns the head of a page and the links to its parts.

    Args:
        children: Of the head.
        parts: Of the page.
        has_curves: Whether there are axes to be switched.
    """
    links = [element("a", part.heading, href=f"#{part.name}") for part in parts]
    switches = [
        _switch("by", {"step": "by step", "time": "by time"}),
        _switch("scale", {"linear": "linear", "log": "log"}),
    ]
    tools = element("div", *switches, class_="switches") if has_curves else None
    bar = element("nav", element("div", *links, tools))
    return joined([element("header", element("div", *children)), bar])


def _switch(sets: str, values: dict[str, str]) -> Markup:
    first = next(iter(values))
    buttons = (
        element("button", text, type="button", data_sets=sets, data_value=value,
                aria_pressed=str(value == first).lower())
        for value, text in values.items()
    )  # fmt: skip
    return element("div", *buttons, class_="switch", role="group")


def unit_of_time(panels: Sequence[Panel]) -> tuple[str, float]:
    """Returns the unit that suits the time of a run, and its hours."""
    hours = [h for panel in panels for curve in panel.curves for h in curve.hours if h is not None]
    longest = max(hours, default=0.0)
    for unit, size in (("days", 24.0), ("hours", 1.0), ("minutes", 1 / 60)):
        if longest >= 2 * size:
            return unit, size
    return "seconds", 1 / 3600


def write_page(page: Page, path: Path) -> int:
    """Writes a page, whole or not at all, and returns its bytes.

    Raises:
        OSError: If it cannot be written.
    """
    data = render(page).encode("utf-8", errors="replace")
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return len(data)


def _checksum(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
