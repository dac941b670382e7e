"""Is an evaluation the mean over its examples, whatever the batches, paddings and devices?"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from step_zoo import (
    Data,
    Net,
    example_loss,
    make_data,
    make_state,
    on_devices,
    squared_error,
    token_weighted_loss,
)

from xtrainer.metrics import DeviceMetrics, HostWindow, finish
from xtrainer.parallel import ParallelConfig
from xtrainer.step import PrecisionConfig, StepSettings, make_eval_step

STATE = make_state()
DATA = make_data(40)


@functools.cache
def compiled(loss: Any, settings: StepSettings | None = None) -> Any:
    return jax.jit(make_eval_step(loss, Net().apply, settings))


def evaluate(loss: Any, examples: int, rows: int) -> dict[str, float]:
    """Returns the metrics of the first examples in batches of ``rows``, the last one padded."""
    window = None
    for start in range(0, examples, rows):
        index = np.minimum(np.arange(start, start + rows), examples - 1)
        batch = {name: array[index] for name, array in DATA.items()}
        mask = np.arange(start, start + rows) < examples
        if window is None:
            shapes = jax.eval_shape(make_eval_step(loss, Net().apply), STATE, batch, mask)
            window = DeviceMetrics.zeros(shapes.layout)
        window = compiled(loss)(STATE, batch, mask, window)
    assert window is not None
    return finish(HostWindow.fetch(window))


@functools.cache
def errors() -> np.ndarray:
    outputs = Net().apply({"params": STATE.params}, DATA["x"])
    return (np.asarray(outputs, np.float64) - DATA["y"]) ** 2


@pytest.mark.parametrize("rows", [1, 5, 8, 16])
def test_any_number_of_examples_gives_their_mean(rows: int) -> None:
    for examples in (1, 2, 7, 8, 9, 16, 17, 31, 40):
        metrics = evaluate(example_loss, examples, rows)
        per_example = errors()[:examples].mean(-1)
        assert metrics["loss"] == pytest.approx(per_example.mean(), rel=1e-6), examples
        assert metrics["small"] == pytest.approx((per_example < 1).mean(), rel=1e-6), examples


@pytest.mark.parametrize("rows", [3, 16])
def test_token_weights_give_the_weighted_mean(rows: int) -> None:
    for examples in (2, 16, 39):
        weight = DATA["token_weight"][:examples]
        expected = (errors()[:examples] * weight).sum() / weight.sum()
        metrics = evaluate(token_weighted_loss, examples, rows)
        assert metrics["loss"] == pytest.approx(expected, rel=1e-6)


def test_nothing_to_measure_gives_no_metric() -> None:
    window = compiled(example_loss)(STATE, make_data(16), np.zeros(16, bool))
    assert finish(HostWindow.fetch(window)) == {}
    missing = finish(HostWindow.fetch(window), missing="nan")
    assert set(missing) == {"loss", "small"} and all(np.isnan(v) for v in missing.values())


def test_the_loss_is_called_without_training() -> None:
    def loss(params: Any, apply_fn: Any, batch: Data, rng: Any, train: bool = True) -> Any:
        assert train is False
        return squared_error(params, apply_fn, batch, rng, train).mean(-1), ({}, {})

    model = Net(dropout=0.9)
    window = jax.jit(make_eval_step(loss, model.apply))(STATE, make_data(40))
    metrics = finish(HostWindow.fetch(window))
    assert metrics["loss"] == pytest.approx(errors().mean(), rel=1e-5)


def drawn(settings: StepSettings | None, batches: int, seed: int = 0) -> list[float]:
    """Returns the random number that the loss drew for each batch."""

    def loss(params: Any, apply_fn: Any, batch: Data, rng: Any, train: bool = True) -> Any:
        return jax.random.uniform(rng), ({}, {})

    step = make_eval_step(loss, Net().apply, settings)
    state, window, numbers = make_state(seed=seed), None, []
    for _ in range(batches):
        window = step(state, {"x": jnp.ones((2, 4))}, None, window)
        numbers.append(float(window.packed[0, 4]))
    return numbers


def test_the_key_is_that_of_seed_eval_and_the_position_of_the_batch() -> None:
    keys = [jax.random.fold_in(jax.random.key(3), index) for index in range(3)]
    expected = [float(jax.random.uniform(key)) for key in keys]
    assert drawn(StepSettings(seed_eval=3), 3) == expected
    assert drawn(StepSettings(seed_eval=3), 3, seed=1) == expected
    assert drawn(None, 1) == [float(jax.random.uniform(jax.random.fold_in(jax.random.key(0), 0)))]


def test_eight_devices_give_what_one_does() -> None:
    state, layout = on_devices(STATE, ParallelConfig(data_axis_size=4, fsdp_axis_size=2))
    batch = jax.device_put(make_data(40), layout.sharding(40))
    window = compiled(example_loss, StepSettings(layout=layout))(state, batch)
    expected = errors().mean(-1)
    metrics = finish(HostWindow.fetch(window))
    assert metrics["loss"] == pytest.approx(expected.mean(), rel=1e-6)
    assert metrics["small"] == pytest.approx((expected < 1).mean(), rel=1e-6)


def test_an_evaluation_is_computed_in_the_precision_of_training() -> None:
    settings = StepSettings(precision=PrecisionConfig(compute_dtype="bfloat16"))
    metrics = finish(HostWindow.fetch(compiled(example_loss, settings)(STATE, DATA)))
    assert metrics["loss"] == pytest.approx(errors().mean(), rel=0.02)
    assert metrics["loss"] != pytest.approx(errors().mean(), rel=1e-6)
