"""Do windows merge into what one long window would have held, and say so under the right names?"""

from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xtrainer.metrics import (
    LOG_MODES,
    DeviceMetrics,
    HostWindow,
    MetricLayout,
    accumulate,
    finish,
)

LAYOUT = MetricLayout.of({"a": ("mean",)})
STEP = jax.jit(accumulate)
Steps = list[tuple[float, float]]


def window(steps: Steps, layout: MetricLayout = LAYOUT) -> HostWindow:
    """Returns the window of steps with ``(mean, weight)``."""
    gathered = DeviceMetrics.zeros(layout)
    names = len(layout.names)
    for mean, weight in steps:
        sums = np.full(names, mean * weight, np.float32)
        gathered = STEP(gathered, sums, np.full(names, weight, np.float32), True)
    return HostWindow.fetch(gathered)


def numpy_metrics(steps: Steps) -> dict[str, float]:
    """Returns every mode, from the definition."""
    pairs = [(np.float32(m * w), np.float32(w)) for m, w in steps if w > 0]
    if not pairs:
        return {}
    total, weight = np.asarray(pairs, np.float64).T
    means = total / weight
    return {
        "a_mean": total.sum() / weight.sum(),
        "a": total.sum() / weight.sum(),
        "a_single": means[-1],
        "a_max": means.max(),
        "a_min": means.min(),
        "a_sum": total.sum(),
        "a_std": means.std(),
    }


values = st.tuples(st.floats(-100.0, 100.0, width=32), st.sampled_from([0.0, 0.5, 1.0, 3.0, 64.0]))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(values, max_size=5), max_size=5))
def test_merged_windows_equal_one_long_window(parts: list[Steps]) -> None:
    merged = window([])
    for part in parts:
        merged = merged.merge(window(part))
    steps = [step for part in parts for step in part]
    found, expected = finish(merged, LOG_MODES), numpy_metrics(steps)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-5, abs=2e-4), name
    whole = finish(window(steps), LOG_MODES)
    for name, value in whole.items():
        assert found[name] == pytest.approx(value, rel=1e-5, abs=2e-4), name


@settings(max_examples=30, deadline=None)
@given(st.lists(values, max_size=4), st.lists(values, max_size=4), st.lists(values, max_size=4))
def test_the_grouping_of_merges_does_not_matter(a: Steps, b: Steps, c: Steps) -> None:
    first, second, third = window(a), window(b), window(c)
    left, right = first.merge(second).merge(third), first.merge(second.merge(third))
    np.testing.assert_allclose(left.columns, right.columns, rtol=1e-9, atol=1e-6)


def test_merging_with_nothing_changes_nothing() -> None:
    some = window([(1.0, 2.0), (-3.0, 1.0)])
    assert some.merge(None) is some
    np.testing.assert_array_equal(some.merge(window([])).columns, some.columns)
    np.testing.assert_array_equal(window([]).merge(some).columns, some.columns)


def test_the_last_value_is_that_of_the_later_window() -> None:
    early, late = window([(1.0, 1.0)]), window([(2.0, 1.0)])
    assert finish(early.merge(late), ("single",)) == {"a_single": 2.0}
    assert finish(late.merge(early), ("single",)) == {"a_single": 1.0}
    assert finish(early.merge(late).merge(window([])), ("single",)) == {"a_single": 2.0}


def test_many_merged_windows_stay_exact() -> None:
    one = window([(1.0, 2.0**24)])
    merged = one
    for _ in range(1000):
        merged = merged.merge(one)
    assert finish(merged, ("sum", "mean")) == {"a_sum": 1001 * 2.0**24, "a_mean": 1.0}


def test_the_low_part_of_a_sum_is_fetched() -> None:
    # 2**24 + 1 is no float32.
    steps = [(1.0, 2.0**24), (1.0, 1.0)]
    assert finish(window(steps), ("sum",)) == {"a_sum": 2.0**24 + 1}


@pytest.mark.parametrize(
    ("modes", "expected"),
    [
        (("mean",), {"a_mean": 2.0}),
        (("mean_nopostfix",), {"a": 2.0}),
        (("max", "min"), {"a_max": 3.0, "a_min": 1.0}),
        ((), {}),
    ],
)
def test_metrics_are_named_by_their_modes(modes: Any, expected: dict[str, float]) -> None:
    steps = [(1.0, 1.0), (3.0, 1.0)]
    assert finish(window(steps, MetricLayout.of({"a": modes}))) == expected
    assert finish(window(steps, MetricLayout.of({"a": ("std",)})), modes or None) == (
        expected or {"a_std": 1.0}
    )


def test_the_mean_weighs_steps_by_their_counts() -> None:
    assert finish(window([(1.0, 1.0), (5.0, 3.0)])) == {"a_mean": 4.0}


def test_a_metric_that_was_never_measured_is_left_out_or_nan() -> None:
    empty = window([(1.0, 0.0)], MetricLayout.of({"a": ("mean", "max")}))
    assert finish(empty) == {}
    missing = finish(empty, missing="nan")
    assert set(missing) == {"a_mean", "a_max"}
    assert all(np.isnan(value) for value in missing.values())


def test_metrics_are_python_floats() -> None:
    metrics = finish(window([(1.0, 1.0), (2.0, 1.0)]), LOG_MODES)
    assert {type(value) for value in metrics.values()} == {float}


def test_a_fetched_window_is_independent_of_the_device() -> None:
    gathered = STEP(DeviceMetrics.zeros(LAYOUT), np.float32([2.0]), np.float32([1.0]), True)
    fetched = HostWindow.fetch(gathered)
    gathered.packed.delete()
    assert finish(fetched) == {"a_mean": 2.0}
    assert fetched.columns.dtype == np.float64
