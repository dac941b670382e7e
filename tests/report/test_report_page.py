"""Is a report one file that shows what is there, says what is not, and runs nothing of it?"""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import report_zoo

from xtrainer.errors import MissingDependencyError
from xtrainer.report import ReportError, page, read_run, write_report
from xtrainer.report.compare import config_differences

EVIL = "<script>alert(1)</script>"


class Found(HTMLParser):
    """What elements a page has, and what they refer to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [v or "" for name, v in attrs if name in ("src", "href", "action")]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """plotly.js is 5 MB, and nothing of it is looked at here."""
    monkeypatch.setattr(page, "plotly_js", lambda: "/* plotly.js */")


def report(folder: Path) -> str:
    return write_report([folder]).read_text(encoding="utf-8")


def plots(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text)
    assert found is not None
    return json.loads(found[1])["plots"]


def titles(text: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", text)


def test_every_part_of_a_run_is_there(tmp_path: Path) -> None:
    text = report(report_zoo.make_run(tmp_path / "a"))
    assert titles(text) == [
        "Results", "Metrics", "Optimization, learning rate and norms", "Speed",
        "Where the time went", "Time line", "Configuration", "Environment",
    ]  # fmt: skip
    for said in ("finished", "2 min 14 s", "10 steps lost", "NVIDIA A100", "goodput"):
        assert said in text


def test_the_table_of_times_sums_to_the_whole(tmp_path: Path) -> None:
    text = report(report_zoo.make_run(tmp_path))
    part = text[text.index('<section id="time">') : text.index('<section id="timeline">')]
    shares = [float(share) for share in re.findall(r">([\d.]+) %<", part)]
    assert shares[-1] == 100.0
    assert sum(shares[:-1]) == pytest.approx(100.0, abs=0.3)  # each is rounded
    bars = next(p["traces"] for p in plots(text).values() if p["layout"].get("barmode") == "stack")
    for row in range(3):  # all starts, and each of two
        assert sum(bar["x"][row] for bar in bars) == pytest.approx(100.0, abs=1e-3)


def test_the_time_line_shows_what_was_lost_and_saved(tmp_path: Path) -> None:
    found = plots(report(report_zoo.make_run(tmp_path)))
    traces = next(p["traces"] for p in found.values() if p["layout"].get("barmode") == "overlay")
    by_name = {trace["name"]: trace for trace in traces}
    assert by_name.keys() == {"running", "lost work", "checkpoint"}
    assert by_name["lost work"]["x"] == [10_000.0]  # ms, from step 10 to step 20
    assert by_name["checkpoint"]["text"] == ["step 10: 2 KiB in 500 ms", "step 30: 2 KiB in 500 ms"]


def test_missing_parts_are_left_out_and_the_reason_is_given(tmp_path: Path) -> None:
    report_zoo.write_rows(tmp_path, report_zoo.ROWS)
    text = report(tmp_path)
    assert not {"Where the time went", "Time line", "Configuration"} & set(titles(text))
    assert "There is no journal of this run." in text


def test_a_run_without_a_row_has_a_report(tmp_path: Path) -> None:
    report_zoo.write_journal(tmp_path, report_zoo.KILLED[:1])
    text = report(tmp_path)
    assert "Metrics" not in titles(text)
    assert "No row of metrics was written." in text


def test_nothing_from_the_files_of_a_run_is_markup(tmp_path: Path) -> None:
    start = report_zoo.START | {"host": EVIL, "git": EVIL, "mesh": {EVIL: 2}}
    stop = {"reason": "FAILED", "detail": EVIL, "exit_code": 1}
    lines = [
        replace(report_zoo.KILLED[0], facts=start),
        report_zoo.line("stop", 9, 3, stop, step=1.0),
    ]
    report_zoo.write_journal(tmp_path / EVIL.replace("/", "_"), lines)
    folder = tmp_path / EVIL.replace("/", "_")
    report_zoo.write_rows(folder, [("train", 1, {EVIL: 1.0, "loss_mean": 2.0})])
    report_zoo.write_config(folder, {EVIL: {EVIL: EVIL}})
    text = report(folder)
    clean = report(report_zoo.make_run(tmp_path / "clean"))
    assert Found(text).tags.count("script") == Found(clean).tags.count("script") == 3
    assert "alert(1)" in text  # it is shown
    assert EVIL not in text


def test_nothing_is_loaded_from_elsewhere(tmp_path: Path) -> None:
    text = report(report_zoo.make_run(tmp_path))
    assert all(reference.startswith("#") for reference in Found(text).references)
    assert "default-src &#x27;none&#x27;" in text


def test_a_long_run_makes_no_long_file(tmp_path: Path) -> None:
    report_zoo.write_rows(tmp_path, [("train", step, {"a": step / 7}) for step in range(1, 4001)])
    text = report(tmp_path)
    assert "smallest and the largest" in text
    picture = plots(text)["plot-1"]
    assert 1900 < len(picture["traces"][0]["y"]) <= 2000


def test_a_long_time_line_says_what_it_leaves_out(tmp_path: Path) -> None:
    lines = [
        report_zoo.KILLED[0],
        report_zoo.line("validation", 5, 5, {"left_out": 41}, step=1.0),
    ]
    report_zoo.write_journal(tmp_path, lines)
    assert "41 events" in report(tmp_path)


def test_a_comparison_shows_curves_of_both_and_settings_that_differ(tmp_path: Path) -> None:
    folders = [
        report_zoo.make_run(tmp_path / name, {"optimizer": {"lr": lr, "name": "adam"}})
        for name, lr in (("a", 0.1), ("b", 0.2))
    ]
    text = write_report(folders, tmp_path / "ab.html").read_text(encoding="utf-8")
    assert titles(text)[0] == "Results" and "Settings that differ" in titles(text)
    assert "optimizer.lr" in text and "optimizer.name" not in text
    names = [[trace["name"] for trace in plot["traces"]] for plot in plots(text).values()]
    assert ["a, train", "a, val", "b, train", "b, val"] in names


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    folders = [report_zoo.make_run(tmp_path / name / "1") for name in ("a", "b")]
    text = write_report(folders, tmp_path / "ab.html").read_text(encoding="utf-8")
    assert "a/1" in text and "b/1" in text
    assert "The configs are the same." in text


def test_a_setting_that_one_run_lacks_differs() -> None:
    found = config_differences([{"a": [1, 2]}, {"a": [1, 2], "b": {"c": None}}])
    assert found == [("b.c", ["–", "null"])]


def test_the_report_lies_in_the_run_folder_and_is_replaced_whole(tmp_path: Path) -> None:
    folder = report_zoo.make_run(tmp_path / "a")
    assert write_report([folder]) == folder / "report.html"
    before = {path.name for path in folder.iterdir()}
    write_report([folder])
    assert {path.name for path in folder.iterdir()} == before


def test_a_file_that_cannot_be_written_is_an_error_that_says_so(tmp_path: Path) -> None:
    run = read_run(report_zoo.make_run(tmp_path / "a"))
    with pytest.raises(ReportError, match="cannot be written"):
        write_report([run], tmp_path / "nowhere" / "report.html")


def test_without_plotly_it_is_said_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setitem(__import__("sys").modules, "plotly.offline", None)
    with pytest.raises(MissingDependencyError, match=r"xtrainer\[report\]"):
        report(report_zoo.make_run(tmp_path))
