"""Counts are added exactly, also where a float32 could not hold them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import xtrainer as xt
from xtrainer.errors import MetricError
from xtrainer.metrics import DeviceMetrics, HostWindow, MetricLayout, finish
from xtrainer.step import make_count_step

STATE = xt.TrainState.create({"w": jnp.ones(2)}, optax.identity(), jax.random.key(0))
LAYOUT = MetricLayout.of({"a": ("sum",), "b": ("sum",)})


def total(counts: Any, calls: int, mask: Any = (True,) * 4) -> dict[str, float]:
    step = jax.jit(make_count_step(lambda p, apply, batch, mask, rng: counts(batch, mask), len))
    window = DeviceMetrics.zeros(LAYOUT)
    for _ in range(calls):
        window = step(STATE, jnp.arange(4), jnp.array(mask), window)
    assert int(window.calls) == calls
    return finish(HostWindow.fetch(window))


def test_counts_beyond_the_digits_of_float32_are_exact() -> None:
    big = 2**30 + 12345
    found = total(lambda batch, mask: jnp.array([big, 1], jnp.int32), calls=5)
    assert found == {"a_sum": 5.0 * big, "b_sum": 5.0}


def test_only_rows_that_the_function_takes_are_counted() -> None:
    count = lambda batch, mask: jnp.stack([mask.sum(), (batch * mask).sum()])  # noqa: E731
    assert total(count, 2, (True, True, False, True)) == {"a_sum": 6.0, "b_sum": 8.0}


def test_each_batch_has_its_own_key() -> None:
    keys: list[Any] = []

    def count(params: Any, apply_fn: Any, batch: Any, mask: Any, rng: Any) -> Any:
        keys.append(jax.random.key_data(rng).tolist())
        return jnp.zeros(2, jnp.int32)

    step, window = make_count_step(count, len), DeviceMetrics.zeros(LAYOUT)
    for _ in range(2):
        window = step(STATE, jnp.arange(4), jnp.ones(4, bool), window)
    root = jax.random.key(0)
    wanted = [jax.random.key_data(jax.random.fold_in(root, number)) for number in (0, 1)]
    assert keys == [key.tolist() for key in wanted]


@pytest.mark.parametrize("counts", [np.ones(2, np.float32), np.ones(3, np.int32)])
def test_something_else_than_so_many_integers_is_refused(counts: np.ndarray) -> None:
    with pytest.raises(MetricError, match=r"A count is .*expected integers of shape \(2,\)"):
        total(lambda batch, mask: counts, 1)
