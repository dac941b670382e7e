"""Is the gradient that of the whole batch, into however many pieces it is divided?"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec
from step_zoo import (
    Data,
    Net,
    assert_close,
    example_loss,
    make_data,
    make_state,
    on_devices,
    pair_loss,
    row_weighted_loss,
    scalar_loss,
    squared_error,
    token_weighted_loss,
    weighted_pair_loss,
)

from xtrainer.errors import BatchError
from xtrainer.parallel import ParallelConfig
from xtrainer.step import StepSettings
from xtrainer.step.gradients import make_gradient_fn, split_rows
from xtrainer.types import LossFunction

ROWS = 16
PIECES = [(1, True), *((count, scan) for count in (2, 4, 8) for scan in (True, False))]
PARAMS = make_state().params
ALL = jnp.ones(ROWS, bool)
KEY = jax.random.key(0)


@functools.cache
def compiled(loss: LossFunction, count: int, scan: bool) -> Callable[..., Any]:
    options = StepSettings(accumulate_steps=count, accumulate_scan=scan)
    return jax.jit(make_gradient_fn(loss, Net().apply, options))


@jax.jit
def expected_gradient(params: Any, batch: Data, weights: jax.Array) -> Any:
    """Returns the gradient of the weighted mean over rows and tokens, written by hand."""

    def weighted_mean(params: Any) -> jax.Array:
        errors = squared_error(params, Net().apply, batch, KEY, True)
        return (errors * weights).sum() / weights.sum()

    return jax.grad(weighted_mean)(params)


def tokens(row_weights: Any) -> np.ndarray:
    return np.broadcast_to(np.asarray(row_weights, np.float32)[:, None], (ROWS, 3))


@pytest.mark.parametrize(("count", "scan"), PIECES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_micro_batches_with_token_weights_give_the_whole_gradient(
    count: int, scan: bool, seed: int
) -> None:
    batch = make_data(ROWS, seed)
    mask = np.random.default_rng(seed).random(ROWS) < 0.6
    result = compiled(token_weighted_loss, count, scan)(PARAMS, {}, batch, mask, KEY)
    weights = batch["token_weight"] * tokens(mask)
    assert_close(result.grads, expected_gradient(PARAMS, batch, weights), 1e-5)
    np.testing.assert_allclose(result.terms.weight, weights.sum(), rtol=1e-6)


@pytest.mark.parametrize(("count", "scan"), PIECES)
def test_micro_batches_with_row_weights_give_the_whole_gradient(count: int, scan: bool) -> None:
    batch = make_data(ROWS)
    mask = np.arange(ROWS) < 11
    result = compiled(row_weighted_loss, count, scan)(PARAMS, {}, batch, mask, KEY)
    weights = tokens(batch["row_weight"] * mask)
    assert_close(result.grads, expected_gradient(PARAMS, batch, weights), 1e-5)


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("loss", [scalar_loss, example_loss, pair_loss])
def test_micro_batches_without_weights_give_the_whole_gradient(
    loss: LossFunction, scan: bool
) -> None:
    batch = make_data(ROWS)
    result = compiled(loss, 4, scan)(PARAMS, {}, batch, ALL, KEY)
    assert_close(result.grads, expected_gradient(PARAMS, batch, tokens(np.ones(ROWS))), 1e-5)


@pytest.mark.parametrize("scan", [True, False])
def test_scalar_sums_with_unequal_weights_give_the_whole_gradient(scan: bool) -> None:
    batch = make_data(ROWS)
    result = compiled(weighted_pair_loss, 8, scan)(PARAMS, {}, batch, ALL, KEY)
    assert_close(result.grads, expected_gradient(PARAMS, batch, batch["token_weight"]), 1e-5)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=ROWS, max_size=ROWS).filter(any),
    st.sampled_from([(1, True), (4, True), (4, False)]),
)
def test_any_weights_give_the_whole_gradient(weights: list[int], pieces: tuple[int, bool]) -> None:
    batch = {**make_data(ROWS), "row_weight": np.asarray(weights, np.float32)}
    result = compiled(row_weighted_loss, *pieces)(PARAMS, {}, batch, ALL, KEY)
    assert_close(result.grads, expected_gradient(PARAMS, batch, tokens(weights)), 1e-5)


def test_the_gradient_of_a_linear_model_is_that_of_the_formula() -> None:
    batch = make_data(ROWS)
    kernel = np.random.default_rng(7).normal(size=(4, 3))

    def loss(params: Any, apply_fn: Any, batch: Data, rng: Any, train: bool = True) -> Any:
        error = (apply_fn(params, batch["x"]) - batch["y"]) ** 2
        return {"value": error, "count": batch["token_weight"]}, ({}, {})

    gradient = make_gradient_fn(
        loss, lambda variables, x: x @ variables["kernel"], StepSettings(accumulate_steps=4)
    )
    found = jax.jit(gradient)({"kernel": jnp.asarray(kernel, jnp.float32)}, {}, batch, ALL, KEY)
    x, y, weight = (batch[name].astype(np.float64) for name in ("x", "y", "token_weight"))
    expected = 2 * x.T @ ((x @ kernel - y) * weight) / weight.sum()
    np.testing.assert_allclose(found.grads["kernel"], expected, rtol=1e-5)


def test_no_weight_at_all_gives_a_zero_gradient() -> None:
    batch = make_data(ROWS)
    for pieces in ((1, True), (4, True)):
        mask = np.zeros(ROWS, bool)
        result = compiled(token_weighted_loss, *pieces)(PARAMS, {}, batch, mask, KEY)
        assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(result.grads))
        assert (float(result.terms.value), float(result.terms.weight)) == (0.0, 0.0)


def test_metrics_are_summed_over_the_micro_batches() -> None:
    batch = make_data(ROWS)
    terms = [
        compiled(example_loss, *pieces)(PARAMS, {}, batch, np.arange(ROWS) < 13, KEY).terms
        for pieces in ((1, True), (4, True), (4, False))
    ]
    for part in terms[1:]:
        np.testing.assert_allclose(part.sums, terms[0].sums, rtol=1e-6)
        np.testing.assert_array_equal(part.counts, [13.0, 13.0])
        assert part.layout == terms[0].layout


def test_sown_values_are_averaged_over_the_micro_batches() -> None:
    model, batch = Net(sown=2), make_data(ROWS)
    found = {}
    for count in (1, 4):
        options = StepSettings(accumulate_steps=count, log_intermediates=True)
        gradient = jax.jit(make_gradient_fn(example_loss, model.apply, options))
        found[count] = gradient(PARAMS, {}, batch, ALL, KEY).terms
        assert found[count].layout.names == ("loss", "small", "mean/0", "mean/1")
    means = [found[count].sums / found[count].counts for count in (1, 4)]
    np.testing.assert_allclose(means[1], means[0], rtol=1e-5)
    x = np.asarray(batch["x"], np.float64)
    dense = jax.tree.map(np.asarray, PARAMS["Dense_0"])
    sown = np.tanh(x @ dense["kernel"] + dense["bias"]).mean()
    np.testing.assert_allclose(means[1][2:], [sown, sown], rtol=1e-5)


@pytest.mark.parametrize("scan", [True, False])
def test_batch_statistics_are_carried_from_piece_to_piece(scan: bool) -> None:
    model = Net(batch_norm=True)
    state, batch = make_state(model), make_data(ROWS)
    options = StepSettings(accumulate_steps=4, accumulate_scan=scan)
    gradient = jax.jit(make_gradient_fn(example_loss, model.apply, options))
    result = gradient(state.params, state.mutable_variables, batch, ALL, KEY)
    mutable = state.mutable_variables
    for index in range(4):
        _, mutable = model.apply(
            {"params": state.params, **mutable},
            batch["x"][index::4],
            train=True,
            mutable=["batch_stats"],
        )
    assert_close(result.terms.mutable, dict(mutable), 1e-6)


def test_each_piece_has_its_own_key() -> None:
    model, batch = Net(dropout=0.5), make_data(ROWS)

    def loss(params: Any, apply_fn: Any, batch: Data, rng: Any, train: bool = True) -> Any:
        kept = jax.random.bernoulli(rng, shape=(batch["x"].shape[0],))
        return squared_error(params, apply_fn, batch, rng, train).mean(-1), ({"kept": kept}, {})

    sums = []
    for scan in (True, False):
        options = StepSettings(accumulate_steps=4, accumulate_scan=scan)
        result = jax.jit(make_gradient_fn(loss, model.apply, options))(PARAMS, {}, batch, ALL, KEY)
        sums.append(np.asarray(result.terms.sums))
    np.testing.assert_allclose(sums[0], sums[1], rtol=1e-6)
    kept = [jax.random.bernoulli(jax.random.fold_in(KEY, i), shape=(4,)).sum() for i in range(4)]
    assert sums[0][1] == sum(int(number) for number in kept)


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize(("rows", "count"), [(6, 4), (3, 8), (16, 5)])
def test_a_batch_that_does_not_divide_is_an_error_while_tracing(
    rows: int, count: int, scan: bool
) -> None:
    options = StepSettings(accumulate_steps=count, accumulate_scan=scan)
    gradient = make_gradient_fn(example_loss, Net().apply, options)
    message = rf"A batch of {rows} rows does not divide into gradient_accumulate_steps={count} "
    with pytest.raises(BatchError, match=message):
        jax.eval_shape(gradient, PARAMS, {}, make_data(rows), jnp.ones(rows, bool), KEY)


def test_pieces_take_turns_with_the_rows() -> None:
    pieces = split_rows({"a": jnp.arange(6), "b": jnp.arange(12).reshape(6, 2)}, 2, None)
    np.testing.assert_array_equal(pieces["a"], [[0, 2, 4], [1, 3, 5]])
    np.testing.assert_array_equal(pieces["b"][1], [[2, 3], [6, 7], [10, 11]])


def test_each_piece_is_spread_over_all_devices_without_moving_a_row() -> None:
    _, layout = on_devices(make_state(), ParallelConfig())
    rows = jax.device_put(jnp.arange(32), layout.sharding(32))
    split = jax.jit(lambda x: split_rows(x, 4, layout))
    pieces = split(rows)
    expected = NamedSharding(layout.mesh, PartitionSpec(None, ("dp", "fsdp")))
    assert pieces.sharding.is_equivalent_to(expected, 2)
    before = {
        shard.device: set(np.asarray(shard.data).tolist()) for shard in rows.addressable_shards
    }
    for shard in pieces.addressable_shards:
        assert set(np.asarray(shard.data).ravel().tolist()) == before[shard.device]
    text = split.lower(rows).compile().as_text()
    assert not any(name in text for name in ("all-gather", "all-to-all", "collective-permute"))


@pytest.mark.parametrize("fsdp", [1, 8])
def test_the_gradient_does_not_depend_on_the_devices(fsdp: int) -> None:
    config = ParallelConfig(data_axis_size=8 // fsdp, fsdp_axis_size=fsdp, fsdp_min_weight_size=32)
    model = Net(width=16)
    state = make_state(model)
    placed, layout = on_devices(state, config)
    batch, mask = make_data(32), np.arange(32) < 27
    shardings = jax.tree.map(lambda x: x.sharding, placed.params)
    options = StepSettings(accumulate_steps=4, layout=layout, param_shardings=shardings)
    spread = jax.device_put((batch, mask), layout.sharding(32))
    gradient = make_gradient_fn(token_weighted_loss, model.apply, options)
    found = jax.jit(gradient)(placed.params, {}, *spread, KEY)
    alone = make_gradient_fn(token_weighted_loss, model.apply, StepSettings())
    expected = jax.jit(alone)(state.params, {}, batch, mask, KEY)
    assert_close(found.grads, expected.grads, 1e-5)
    kernel = found.grads["Dense_0"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (4, 16 // fsdp)
