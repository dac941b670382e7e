"""Are curves of one metric in one picture, and is a long one still what it was?"""

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from xtrainer.report import RunRecord, curves
from xtrainer.report.curves import (
    MOST_CURVES,
    MOST_POINTS,
    Panel,
    panels_of,
    place_of,
    thin,
    thinned,
)
from xtrainer.report.run import Row

BEGAN = datetime(2026, 1, 2, tzinfo=UTC)


def row(mode: str, step: int, **metrics: float) -> Row:
    return Row(mode, step, 1, BEGAN + timedelta(seconds=step), metrics)


def panels(rows: list[Row], left: list[Row] | None = None) -> dict[str, Panel]:
    run = RunRecord(Path("run"), rows=rows, superseded=left or [])
    return {panel.title: panel for panel in panels_of(run)}


def test_training_and_validation_of_a_metric_share_a_picture() -> None:
    rows = [row("train", 1, loss_mean=2.0), row("val", 1, loss=3.0), row("test", 1, loss=4.0)]
    found = panels(rows)["loss"]
    assert [(c.name, c.values) for c in found.curves] == [
        ("train", [2.0]), ("val", [3.0]), ("test", [4.0]),
    ]  # fmt: skip


def test_the_prefix_of_a_validation_set_is_taken_for_its_name() -> None:
    rows = [row("train", 1, loss_mean=2.0), row("val", 1, books_loss=3.0, web_loss=4.0)]
    assert [curve.name for curve in panels(rows)["loss"].curves] == [
        "train",
        "val books",
        "val web",
    ]


def test_rows_of_steps_taken_again_are_curves_of_their_own() -> None:
    found = panels([row("train", 1, loss_mean=2.0)], [row("train", 1, loss_mean=9.0)])["loss"]
    assert [(c.name, c.left) for c in found.curves] == [
        ("train", False), ("train, taken again", True),
    ]  # fmt: skip


def test_the_loss_comes_first_and_speed_last() -> None:
    names = list(
        panels([row("train", s, mfu=0.5, lr=0.1, zeal_mean=1.0, loss_mean=1.0) for s in (1, 2)])
    )
    assert names[:2] == ["loss", "zeal"]
    assert names.index("lr") < names.index("mfu")


def test_norms_of_parameters_are_one_picture_of_at_most_so_many() -> None:
    names = {f"grad_norm/layer_{i}/kernel": float(i) for i in range(2 * MOST_CURVES)}
    found = panels([row("train", 1, **names)])["grad_norm by parameter"]
    assert len(found.curves) == MOST_CURVES
    assert min(curve.values[-1] or 0.0 for curve in found.curves) == MOST_CURVES


def test_what_is_not_finite_is_a_gap_and_counted() -> None:
    rows = [row("train", s, loss_mean=value) for s, value in enumerate((1.0, math.nan, math.inf))]
    found = panels(rows)["loss"]
    assert found.curves[0].values == [1.0, None, None]
    assert found.gaps == 2


def test_without_rates_the_steps_per_second_come_from_the_times_of_rows() -> None:
    found = panels([row("train", step, loss_mean=1.0) for step in range(0, 100, 10)])
    (curve,) = found["steps_per_s, pauses included"].curves
    assert curve.values == pytest.approx([1.0] * 9)


def test_a_long_curve_keeps_its_peaks_and_its_ends() -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(size=100_000)
    values[[31_234, 77_777]] = 50.0, -50.0
    kept = thinned(values.tolist())
    assert len(kept) <= MOST_POINTS
    assert {0, 31_234, 77_777, 99_999} <= set(kept)
    assert kept == sorted(kept)


def test_in_each_stretch_the_smallest_and_the_largest_are_kept() -> None:
    values = [float(i % 10) for i in range(1000)]
    kept = thinned(values, most=202)  # stretches of ten
    assert {values[i] for i in kept} == {0.0, 9.0}
    assert len(kept) == 200


def test_a_short_curve_is_left_as_it_is() -> None:
    found = [
        Panel("loss", "metrics", panels([row("train", s, x=1.0) for s in range(9)])["x"].curves)
    ]
    assert not thin(found)
    assert len(found[0].curves[0].values) == 9


def test_many_long_curves_have_fewer_points_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "MOST_POINTS_IN_ALL", 2000)
    rows = [row("train", s, **{f"m{i}": float(s) for i in range(20)}) for s in range(1, 301)]
    found = panels_of(RunRecord(Path("run"), rows=rows))
    assert thin(found)
    assert 1800 <= sum(len(c.values) for panel in found for c in panel.curves) <= 2000


def test_a_time_has_the_name_of_its_set() -> None:
    assert place_of("time_s", "val")[0] == "val_time_s"
