"""How are the rows shown? As a table in Markdown, as JSON, and as a plot."""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import Row, Spread

HEADER = ("workload", "case", "who", "unit", "bare", "framework", "added", "ratio", "note")
NO_PLOT = "No plot: matplotlib is missing. Install it with: pip install 'xtrainer[benchmarks]'"


def number(value: float) -> str:
    """Returns a number with three digits that count, and never in powers of ten.

    Example:
        >>> number(1234.5), number(12.345), number(0.01234), number(-0.5)
        ('1234', '12.3', '0.0123', '-0.5')
    """
    size = abs(value)
    if size == 0:
        return "0"
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 4 if size < 0.1 else 3
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def with_quartiles(spread: Spread | None) -> str:
    """Returns the median and, in brackets, the quartiles.

    Example:
        >>> with_quartiles(Spread(2.0, 1.5, 2.5)), with_quartiles(None)
        ('2 (1.5 to 2.5)', '')
    """
    if spread is None:
        return ""
    texts = [number(value) for value in (spread.median, spread.low, spread.high)]
    return texts[0] if len(set(texts)) == 1 else f"{texts[0]} ({texts[1]} to {texts[2]})"


def cells(row: Row) -> tuple[str, ...]:
    """Returns the texts of a line of the table."""
    sides = [number(side.median) if side else "" for side in (row.bare, row.framework)]
    compared = [with_quartiles(row.added), with_quartiles(row.ratio)]
    return (row.workload, row.case, row.who, row.unit, *sides, *compared, row.note)


def table(rows: Sequence[Row]) -> str:
    """Returns the rows in Markdown: medians, and quartiles of what was compared in pairs."""
    lines = [HEADER, ("---",) * 4 + ("--:",) * 4 + ("---",), *map(cells, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def facts(machines: dict[str, Any]) -> str:
    """Returns a line for each kind of machine and set of versions that was measured on."""
    found: dict[str, list[str]] = {}
    for name, machine in machines.items():
        if machine:
            versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items() if v)
            kinds = machine["devices"]
            devices = f"{len(kinds)} x {kinds[0]}" if kinds else "no device"
            line = f"{devices}; {machine['processors']} processors; "
            line += f"Python {machine['python']}; {versions}"
            found.setdefault(line, []).append(name)
    return "\n".join(f"- {', '.join(names)}: {line}." for line, names in found.items())


def to_json(result: dict[str, Any]) -> str:
    """Returns rows and machines as JSON."""
    rows = [row.to_dict() for row in result["rows"]]
    return json.dumps({"rows": rows, "machines": result["machines"]}, indent=2) + "\n"


def draw(rows: Sequence[Row], file: Path) -> bool:
    """Draws the ratio of every row with its quartiles; says whether that was possible."""
    shown = [row for row in rows if row.ratio is not None]
    if not shown or importlib.util.find_spec("matplotlib") is None:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.2 + 0.28 * len(shown)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for place, row in enumerate(shown):
        ratio = row.ratio
        if ratio is None:
            continue
        color = "tab:gray" if row.who == "bare" else "tab:blue"
        color = color if row.who in ("bare", "xtrainer") else "tab:orange"
        axes.plot([ratio.low, ratio.high], [place, place], color=color)
        axes.plot([ratio.median], [place], "o", color=color)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    for set_format in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        set_format("{x:.3g}")
    axes.set_yticks(range(len(shown)), [f"{r.workload}: {r.case} ({r.who})" for r in shown])
    axes.invert_yaxis()
    axes.set_xlabel("framework / bare loop of its own backend (median and quartiles)")
    figure.savefig(file, dpi=120)
    return True


def write(result: dict[str, Any], folder: Path) -> str:
    """Writes ``table.md`` and, where matplotlib is installed, ``ratios.png``; returns a line."""
    folder.mkdir(parents=True, exist_ok=True)
    text = f"{table(result['rows'])}\n\n{facts(result['machines'])}\n"
    (folder / "table.md").write_text(text, encoding="utf-8")
    drawn = draw(result["rows"], folder / "ratios.png")
    if drawn:
        return f"Written: {folder / 'table.md'} and {folder / 'ratios.png'}"
    missing = importlib.util.find_spec("matplotlib") is None
    why = NO_PLOT if missing else "There was nothing to plot."
    return f"Written: {folder / 'table.md'}. {why}"
