"""In which shape does a process give its part of a batch, so that all parts are of one size?"""

from typing import Any

import jax
import numpy as np
import pytest
import zoo

import xtrainer as xt
from xtrainer.errors import BatchError
from xtrainer.parallel import BatchLayout
from xtrainer.trainer import batches
from xtrainer.trainer.batches import BatchPreparer
from xtrainer.types import DataShard


@pytest.fixture(autouse=True)
def placed_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Leaves this process's part on the host; gives the rows of the whole batches."""
    rows: list[int] = []

    def place(batch: Any, sharding: Any, whole: int) -> Any:
        rows.append(whole)
        return batch

    monkeypatch.setattr(batches, "place", place)
    monkeypatch.setattr(batches, "feeds_host_batches", lambda layout: False)  # alone, it would
    return rows


def preparer(count: int = 2, paddable: bool = True, **kwargs: Any) -> BatchPreparer:
    """Returns the preparer of one of several processes that share eight devices."""
    layout = BatchLayout.of(zoo.devices(8), xt.ParallelConfig())
    vars(layout)["shard"] = DataShard(0, count)  # as if found by the mesh
    return BatchPreparer(layout, paddable, **kwargs)


def part(rows: int) -> dict[str, np.ndarray]:
    return {"inputs": 1 + np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)}


def begun(full: int = 8, count: int = 2, **kwargs: Any) -> BatchPreparer:
    prepare = preparer(count, **kwargs)
    prepare.begin(full, part(full))
    return prepare


def test_a_full_part_is_that_share_of_the_batch(placed_rows: list[int]) -> None:
    placed = begun()(part(8))
    assert (placed.rows, placed.examples) == (16, 16)
    assert placed_rows == [16, 16]  # of the mask and of the data
    np.testing.assert_array_equal(placed.data["inputs"], part(8)["inputs"])
    assert placed.row_mask.all()


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_a_smaller_part_is_padded_to_the_size_of_the_others(
    placed_rows: list[int], rows: int
) -> None:
    placed = begun()(part(rows))
    assert placed.rows == 16 and set(placed_rows) == {16}
    assert placed.data["inputs"].shape == (8, 2)
    np.testing.assert_array_equal(placed.row_mask, np.arange(8) < rows)
    np.testing.assert_array_equal(placed.data["inputs"][:rows], part(rows)["inputs"])


def test_a_part_is_rounded_up_to_the_devices_of_its_process() -> None:
    placed = begun(full=5)(part(5))
    assert placed.rows == 16 and placed.row_mask.sum() == 5


def test_an_empty_part_is_filled_with_the_newest_row() -> None:
    prepare = begun()
    prepare(part(3))
    placed = prepare(part(0))
    np.testing.assert_array_equal(placed.data["inputs"], np.repeat([[5.0, 6.0]], 8, 0))
    assert not placed.row_mask.any()


def test_a_process_that_has_nothing_gives_padding_of_the_agreed_shape() -> None:
    prepare = preparer()
    prepare.begin(8, jax.ShapeDtypeStruct((3, 2), np.float16))
    placed = prepare.empty()
    assert (placed.rows, placed.examples) == (16, 0)
    assert placed.data.shape == (8, 2) and placed.data.dtype == np.float16
    assert not placed.row_mask.any()


def test_padding_after_a_batch_repeats_its_last_row() -> None:
    prepare = begun()
    prepare(part(2))
    np.testing.assert_array_equal(prepare.empty().data["inputs"], np.repeat([[3.0, 4.0]], 8, 0))


def test_a_part_larger_than_agreed_is_refused() -> None:
    with pytest.raises(BatchError, match="batch of 9 rows from this process, expected 8 .*at most"):
        begun()(part(9))


def test_a_smaller_part_that_cannot_be_masked_is_refused() -> None:
    prepare = begun(paddable=False)
    assert prepare(part(8)).rows == 16
    with pytest.raises(BatchError, match="a batch of 6 rows .*Padding cannot be masked out"):
        prepare(part(6))


@pytest.mark.parametrize(
    ("rows", "accumulate", "message"),
    [
        (6, 1, "12 rows does not divide over 8 devices"),
        (4, 3, "8 rows does not divide into gradient_accumulate_steps=3"),
    ],
)
def test_the_rows_of_all_processes_must_divide(rows: int, accumulate: int, message: str) -> None:
    with pytest.raises(BatchError, match=message):
        begun(full=rows, accumulate_steps=accumulate).check_full(part(rows))


@pytest.mark.parametrize("count", [2, 4, 8])
def test_masks_are_made_once(placed_rows: list[int], count: int) -> None:
    prepare = begun(count=count)
    for rows in (8, 8, 3, 8, 3):
        prepare(part(rows))
    assert placed_rows == [8 * count] * 7  # five batches and two masks
