"""In which shape does a batch reach the step, and what is refused before it does?"""

from typing import Any

import jax
import numpy as np
import pytest
import zoo
from jax.sharding import PartitionSpec

import xtrainer as xt
from xtrainer.errors import BatchError
from xtrainer.parallel import BatchLayout
from xtrainer.trainer.batches import BatchPreparer

WIDE = 1024
"""Columns of a batch that is too large to go into a step as host arrays."""


def layout(count: int = 8) -> BatchLayout:
    return BatchLayout.of(zoo.devices(count), xt.ParallelConfig())


def batch(rows: int, width: int = 2) -> dict[str, np.ndarray]:
    return {"inputs": np.arange(rows * width, dtype=np.float32).reshape(rows, width)}


@pytest.mark.parametrize("rows", [16, 11, 8, 3, 1])
def test_a_smaller_batch_is_padded_to_the_full_size_and_masked(rows: int) -> None:
    prepare = BatchPreparer(layout(), paddable=True)
    prepare(batch(16))
    placed = prepare(batch(rows))
    assert (placed.rows, placed.examples) == (16, rows)
    np.testing.assert_array_equal(placed.row_mask, np.arange(16) < rows)
    last = np.repeat(batch(rows)["inputs"][-1:], 16 - rows, axis=0)  # valid, though masked out
    expected = np.concatenate([batch(rows)["inputs"], last])
    np.testing.assert_array_equal(placed.data["inputs"], expected)


def test_a_batch_that_cannot_be_padded_keeps_its_rows() -> None:
    prepare = BatchPreparer(layout(), paddable=False)
    prepare(batch(16, WIDE))
    placed = prepare(batch(11, WIDE))
    assert (placed.rows, placed.examples) == (11, 11)
    assert np.asarray(placed.row_mask).all()
    assert placed.data["inputs"].sharding.spec == PartitionSpec()


def test_rows_that_divide_are_spread_over_the_devices() -> None:
    placed = BatchPreparer(layout(), paddable=False)(batch(16, WIDE))
    assert placed.data["inputs"].addressable_shards[0].data.shape == (2, WIDE)
    assert placed.row_mask.addressable_shards[0].data.shape == (2,)


def test_the_first_evaluation_batch_is_rounded_up_to_the_devices() -> None:
    placed = BatchPreparer(layout(), paddable=True)(batch(11))
    assert (placed.rows, placed.examples) == (16, 11)


def test_batches_of_other_shapes_have_a_full_size_of_their_own() -> None:
    prepare = BatchPreparer(layout(1), paddable=True)
    prepare(batch(16))
    assert prepare(batch(4, width=3)).rows == 4
    assert prepare(batch(2, width=3)).rows == 4


def test_a_larger_batch_becomes_the_full_size() -> None:
    prepare = BatchPreparer(layout(1), paddable=True)
    assert [prepare(batch(rows)).rows for rows in (4, 9, 4)] == [4, 9, 9]


def test_masks_are_placed_once_for_each_number_of_rows() -> None:
    prepare = BatchPreparer(layout(1), paddable=True)
    masks = [prepare(batch(rows)).row_mask for rows in (4, 3, 4, 3)]
    assert masks[0] is masks[2] and masks[1] is masks[3]


@pytest.mark.parametrize(
    ("rows", "pieces", "message"),
    [
        (10, 4, "10 rows does not divide into gradient_accumulate_steps=4 micro-batches"),
        (12, 2, r"12 rows does not divide over 8 devices \(mesh axes {'dp': 8"),
    ],
)
def test_a_full_training_batch_that_does_not_divide_is_refused(
    rows: int, pieces: int, message: str
) -> None:
    prepare = BatchPreparer(layout(), True, pieces)
    with pytest.raises(BatchError, match=message):
        prepare(batch(rows))
    with pytest.raises(BatchError, match=message):
        prepare.check_full(batch(rows))


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"inputs": np.zeros((8, 3), np.float32)}, r"inputs: found float32\[rows, 3\], expected"),
        ({"inputs": np.zeros((8, 2), np.int32)}, r"inputs: found int32\[rows, 2\], expected"),
        ({"input": np.zeros((8, 2), np.float32)}, "inputs: missing; input: not expected"),
        ([np.zeros((8, 2), np.float32)], "inputs: missing"),
        ({**batch(8), "extra": np.zeros(8)}, "extra: not expected"),
    ],
)
def test_a_batch_unlike_the_example_is_refused(found: Any, message: str) -> None:
    prepare = BatchPreparer(layout(), True, 1, expected=jax.eval_shape(lambda: batch(4)))
    with pytest.raises(BatchError, match=message):
        prepare(found)


def test_float64_rows_fit_a_float32_example() -> None:
    prepare = BatchPreparer(layout(), True, 1, expected=batch(4))
    assert prepare({"inputs": np.zeros((8, 2))}).data["inputs"].dtype == np.float32


def test_leaves_with_different_leading_axes_are_named() -> None:
    example = {"inputs": np.zeros((8, 2)), "targets": np.zeros(8)}
    prepare = BatchPreparer(layout(), True, 1, expected=example)
    with pytest.raises(BatchError, match=r"inputs: \(8, 2\), targets: \(7,\)"):
        prepare({**example, "targets": np.zeros(7)})


@pytest.mark.parametrize("paddable", [True, False])
def test_a_run_may_begin_with_the_last_batch_of_a_pass(paddable: bool) -> None:
    prepare = BatchPreparer(layout(), paddable, accumulate_steps=2)
    prepare.begin(full_rows=16)
    prepare.check_first(batch(11))
    assert prepare(batch(11)).rows == (16 if paddable else 11)
    assert prepare(batch(16)).rows == 16
    with pytest.raises(BatchError, match="17 rows does not divide"):
        prepare(batch(17))


def test_a_run_that_begins_anew_takes_its_first_batch_for_a_full_one() -> None:
    prepare = BatchPreparer(layout(1), paddable=True, accumulate_steps=1)
    prepare(batch(16))
    prepare.begin(full_rows=0)
    assert prepare(batch(8)).rows == 8
