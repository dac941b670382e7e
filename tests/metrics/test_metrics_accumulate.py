"""Are sums on the device right after many steps, large counts and refused steps?"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xtrainer.errors import MetricError
from xtrainer.metrics import (
    LOG_MODES,
    DeviceMetrics,
    HostWindow,
    MetricLayout,
    accumulate,
    finish,
)

LAYOUT = MetricLayout.of({"a": LOG_MODES, "b": LOG_MODES})
STEP = jax.jit(accumulate)


def gather(sums: Any, counts: Any, accept: Any = None) -> DeviceMetrics:
    """Returns a window with the steps of ``(steps, 2)`` sums and counts."""
    window = DeviceMetrics.zeros(LAYOUT)
    accept = [True] * len(sums) if accept is None else accept
    for row in zip(sums, counts, accept, strict=True):
        window = STEP(window, np.float32(row[0]), np.float32(row[1]), row[2])
    return window


def one_metric(steps: int, value: float, count: float, ramp: float = 0.0) -> HostWindow:
    """Returns a window of many steps, ``value + ramp * step`` over ``count``, made in one call."""

    def body(step: jax.Array, window: DeviceMetrics) -> DeviceMetrics:
        total = (value + ramp * step.astype(jnp.float32)) * count
        return accumulate(window, total[None], jnp.full(1, count, jnp.float32), True)

    start = DeviceMetrics.zeros(MetricLayout.of({"a": ("mean",)}))
    return HostWindow.fetch(jax.jit(lambda w: jax.lax.fori_loop(0, steps, body, w))(start))


def test_all_modes_are_those_of_the_steps_means() -> None:
    generator = np.random.default_rng(0)
    counts = generator.uniform(0.5, 9.0, size=(20, 2)).astype(np.float32)
    means = generator.normal(-5.0, 2.0, size=(20, 2))
    sums = (means * counts).astype(np.float32)
    metrics = finish(HostWindow.fetch(gather(sums, counts)))
    for column, name in enumerate(("a", "b")):
        total, weight = sums[:, column].astype(np.float64), counts[:, column].astype(np.float64)
        per_step = total / weight
        expected = {
            f"{name}_mean": total.sum() / weight.sum(),
            name: total.sum() / weight.sum(),
            f"{name}_single": per_step[-1],
            f"{name}_max": per_step.max(),
            f"{name}_min": per_step.min(),
            f"{name}_sum": total.sum(),
            f"{name}_std": per_step.std(),
        }
        for key, value in expected.items():
            assert metrics[key] == pytest.approx(value, rel=1e-6), key
    assert len(metrics) == 2 * len(LOG_MODES)


def test_a_maximum_of_negative_numbers_is_negative() -> None:
    metrics = finish(HostWindow.fetch(gather([[-8, -2], [-6, -4]], [[2, 1], [2, 1]])))
    assert (metrics["a_max"], metrics["a_min"]) == (-3.0, -4.0)
    assert (metrics["b_max"], metrics["b_min"]) == (-2.0, -4.0)


def test_a_minimum_of_positive_numbers_is_positive() -> None:
    metrics = finish(HostWindow.fetch(gather([[3, 5], [5, 4]], [[1, 1], [1, 1]])))
    assert (metrics["a_min"], metrics["b_min"]) == (3.0, 4.0)


@pytest.mark.parametrize("value", [7.5, -7.5])
def test_one_step_is_its_own_mean_maximum_and_minimum(value: float) -> None:
    metrics = finish(HostWindow.fetch(gather([[value, 0]], [[1, 1]])))
    for mode in ("mean", "single", "max", "min", "sum"):
        assert metrics[f"a_{mode}"] == value
        assert metrics[f"b_{mode}"] == 0.0
    assert metrics["a_std"] == 0.0


def test_counts_beyond_31_bits_are_exact() -> None:
    window = one_metric(steps=70_000, value=3.0, count=65_536.0)
    count = 70_000 * 65_536
    assert count > 2**32
    np.testing.assert_array_equal(window.columns[0, [0, 2]], [3.0 * count, count])
    assert finish(window) == {"a_mean": 3.0}


def test_a_count_that_float32_cannot_hold_is_exact() -> None:
    assert one_metric(steps=30_000, value=1.0, count=16_777_213.0).columns[0, 2] == (
        30_000 * 16_777_213
    )


def test_a_running_mean_does_not_drift_over_200_000_steps() -> None:
    window = one_metric(steps=200_000, value=2.7, count=1.0)
    assert finish(window)["a_mean"] == pytest.approx(2.7, rel=1e-6)
    assert finish(window, ("sum",))["a_sum"] == pytest.approx(200_000 * np.float32(2.7), rel=1e-9)


def test_a_changing_value_does_not_drift_over_200_000_steps() -> None:
    window = one_metric(steps=200_000, value=0.1, count=3.0, ramp=1e-5)
    values = np.float32(0.1) + np.float32(1e-5) * np.arange(200_000)
    assert finish(window)["a_mean"] == pytest.approx(values.mean(), rel=1e-6)
    assert finish(window, ("std",))["a_std"] == pytest.approx(values.std(), rel=5e-3)


def test_the_spread_survives_a_large_offset() -> None:
    values = (1e4 + np.random.default_rng(0).normal(size=500)).astype(np.float32)
    window = gather(np.stack([values] * 2, 1), np.ones((500, 2)))
    expected = values.astype(np.float64).std()
    assert finish(HostWindow.fetch(window), ("std",))["a_std"] == pytest.approx(expected, rel=1e-3)


def test_a_constant_has_no_spread() -> None:
    window = gather(np.full((50, 2), 1234.5), np.ones((50, 2)))
    assert finish(HostWindow.fetch(window), ("std",))["a_std"] == 0.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_refused_step_adds_nothing(bad: float) -> None:
    sums, counts = [[1, 2], [bad, bad], [3, 4]], [[1, 1], [1, bad], [1, 1]]
    window = gather(sums, counts, [True, False, True])
    np.testing.assert_array_equal(window.packed, gather([[1, 2], [3, 4]], [[1, 1], [1, 1]]).packed)


def test_every_call_is_counted() -> None:
    window = gather([[1, 1]] * 3, [[1, 1], [0, 0], [1, 1]], [True, True, False])
    assert (int(window.calls), window.calls.dtype) == (3, jnp.int32)


def test_a_metric_of_weight_0_was_not_measured() -> None:
    metrics = finish(HostWindow.fetch(gather([[2, 1], [0, 3], [4, 5]], [[1, 1], [0, 1], [1, 1]])))
    assert metrics["a_mean"] == metrics["a_max"] - 1.0 == metrics["a_min"] + 1.0 == 3.0
    assert (metrics["a_single"], metrics["b_mean"]) == (4.0, 3.0)


def test_an_accepted_value_that_is_not_finite_shows() -> None:
    metrics = finish(HostWindow.fetch(gather([[1, 1], [np.nan, 1]], [[1, 1], [1, 1]])))
    for mode in ("mean", "max", "min", "single", "sum", "std"):
        assert np.isnan(metrics[f"a_{mode}"]), mode
        assert np.isfinite(metrics[f"b_{mode}"]), mode


def test_a_window_keeps_its_type_in_a_loop() -> None:
    window = DeviceMetrics.zeros(LAYOUT)
    after = jax.eval_shape(lambda w: accumulate(w, jnp.ones(2), jnp.ones(2), True), window)
    assert jax.tree.structure(after) == jax.tree.structure(window)
    assert after.packed.shape == window.packed.shape == (2, 10)


def test_windows_of_eight_devices_hold_the_global_sums() -> None:
    mesh = jax.make_mesh((8,), ("dp",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.NamedSharding(mesh, jax.P("dp"))
    ones = jax.device_put(np.ones(64, np.float32), spread)

    @jax.jit
    def step(window: DeviceMetrics, values: jax.Array) -> DeviceMetrics:
        sums = jnp.stack([values.sum(), -values.sum()])
        return accumulate(window, sums, jnp.full(2, values.size, jnp.float32), True)

    window = DeviceMetrics.zeros(LAYOUT)
    for _ in range(3):
        window = step(window, ones)
    metrics = finish(HostWindow.fetch(window))
    assert {metrics[f"a_{mode}"] for mode in ("mean", "max", "min", "single")} == {1.0}
    assert {metrics[f"b_{mode}"] for mode in ("mean", "max", "min", "single")} == {-1.0}
    assert metrics["a_sum"] == 192.0


def test_a_layout_keeps_the_order_of_the_metrics() -> None:
    layout = MetricLayout.of({"z": ["max"], "a": ("mean", "std"), "m": ()})
    assert layout.names == ("z", "a", "m")
    assert layout.modes == (("max",), ("mean", "std"), ())
    same = MetricLayout.of({"z": ("max",), "a": ["mean", "std"], "m": []})
    assert (layout, hash(layout)) == (same, hash(same))


def test_an_unknown_mode_is_an_error_with_the_nearest() -> None:
    message = "Metric 'acc' has the log mode 'maxx'. Did you mean 'max'"
    with pytest.raises(MetricError, match=message):
        MetricLayout.of({"loss": ("mean",), "acc": ("min", "maxx")})


def test_no_metrics_at_all_are_no_error() -> None:
    window = DeviceMetrics.zeros(MetricLayout.of({}))
    window = accumulate(window, jnp.zeros(0), jnp.zeros(0), True)
    assert finish(HostWindow.fetch(window)) == {}
