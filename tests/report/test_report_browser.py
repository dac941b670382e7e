"""Does a browser show the report: every picture, without an error, and without a network?"""

from collections.abc import Iterator
from typing import Any

import pytest
import report_zoo
from browser import open_page

from xtrainer.report import write_report

EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The page of a run whose metric and config have names that would be markup."""
    folder = report_zoo.make_run(tmp_path_factory.mktemp("run") / "a", {EVIL: {"a": EVIL}})
    report_zoo.write_rows(folder, [("train", 41, {EVIL: 1.0, "loss_mean": 0.1})])
    with open_page(write_report([folder]), viewport={"width": 1180, "height": 900}) as opened:
        yield opened


def plot_of(page: Any, title: str) -> Any:
    """Returns the picture below a title."""
    panel = page.locator(".panel", has=page.get_by_role("heading", name=title, exact=True))
    found = panel.locator(".plot")
    found.scroll_into_view_if_needed()
    page.wait_for_timeout(400)  # the page scrolls smoothly
    return found


def x_range(plot: Any) -> list[float]:
    return plot.evaluate("plot => plot._fullLayout.xaxis.range")


def test_the_console_has_nothing_to_complain_of(page: Any) -> None:
    assert page.complaints == []


def test_only_the_file_itself_is_asked_for(page: Any) -> None:
    assert [url.split("://")[0] for url in page.requests] == ["file"]


def test_every_picture_has_its_curves(page: Any) -> None:
    counts = page.evaluate(
        "[...document.querySelectorAll('.plot')].map(plot => [plot.data.length,"
        " plot.querySelectorAll('.scatterlayer .trace, .barlayer .trace').length])"
    )
    assert all(wanted == drawn > 0 for wanted, drawn in counts)
    # Loss, accuracy, the evil one; a norm; speed, time of validations; ledger; time line.
    assert [wanted for wanted, _ in counts] == [2, 1, 1, 1, 1, 1, 6, 3]


def test_a_name_that_would_be_markup_is_text(page: Any) -> None:
    assert page.get_by_role("heading", name=EVIL, exact=True).count() == 1
    assert page.evaluate("document.querySelectorAll('img').length") == 0


def test_a_drag_zooms_and_a_double_click_goes_back(page: Any) -> None:
    plot = plot_of(page, "loss")
    whole = x_range(plot)
    box = plot.locator(".nsewdrag").bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 0.3, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.6, middle, steps=4)
    page.mouse.up()
    page.wait_for_timeout(300)
    zoomed = x_range(plot)
    assert whole[0] < zoomed[0] < zoomed[1] < whole[1]
    page.mouse.dblclick(box["x"] + box["width"] * 0.5, middle)
    page.wait_for_timeout(600)
    assert x_range(plot) == pytest.approx(whole)


def test_a_click_on_the_legend_hides_a_curve(page: Any) -> None:
    plot = plot_of(page, "loss")
    shown = "plot => plot.querySelectorAll('.scatterlayer .trace').length"
    assert plot.evaluate(shown) == 2
    plot.locator(".legendtoggle").nth(1).click()
    page.wait_for_timeout(800)  # a second click within a moment would be a double click
    assert plot.evaluate(shown) == 1
    plot.locator(".legendtoggle").nth(1).click()
    page.wait_for_timeout(800)
    assert plot.evaluate(shown) == 2


def test_curves_can_be_shown_by_time_and_logarithmically(page: Any) -> None:
    plot = plot_of(page, "loss")
    axes = "plot => [plot._fullLayout.xaxis.title.text, plot._fullLayout.yaxis.type]"
    assert plot.evaluate(axes) == ["step", "linear"]
    page.get_by_role("button", name="by time").click()
    page.get_by_role("button", name="log", exact=True).click()
    page.wait_for_timeout(500)
    title, scale = plot.evaluate(axes)
    assert "since the first start" in title and scale == "log"
    page.get_by_role("button", name="by step").click()
    page.get_by_role("button", name="linear").click()


def test_the_scheme_of_the_reader_is_followed(page: Any) -> None:
    plot = plot_of(page, "loss")
    ink = "plot => plot._fullLayout.font.color"
    background = "getComputedStyle(document.body).backgroundColor"
    light = plot.evaluate(ink), page.evaluate(background)
    page.emulate_media(color_scheme="dark")
    page.wait_for_timeout(800)
    dark = plot.evaluate(ink), page.evaluate(background)
    assert (light[0], dark[0]) == ("#1d1f23", "#e6e6e3")
    assert light[1] != dark[1]
    assert page.complaints == []
