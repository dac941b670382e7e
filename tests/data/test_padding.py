import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xtrainer.data import Batch, pad_rows, row_mask
from xtrainer.errors import BatchError


@given(st.integers(1, 20), st.integers(0, 20), st.integers(1, 4))
def test_padding_keeps_the_rows_and_repeats_the_last(found, extra, width):
    inputs = np.random.default_rng(found).normal(size=(found, width))
    batch = Batch(inputs=inputs, targets=np.arange(found))
    padded, mask = pad_rows(batch, found + extra)
    assert mask.dtype == bool and mask.tolist() == [True] * found + [False] * extra
    np.testing.assert_array_equal(padded.inputs[mask], inputs)
    np.testing.assert_array_equal(padded.targets[mask], batch.targets)
    assert padded.inputs.shape == (found + extra, width) and padded.inputs.dtype == inputs.dtype
    assert (padded.targets[found:] == found - 1).all()
    assert (padded.inputs[found:] == inputs[-1]).all()


def test_masked_mean_over_padding_is_the_mean():
    values = np.arange(5.0)
    padded, mask = pad_rows({"x": values}, 8)
    assert (padded["x"] * mask).sum() / mask.sum() == values.mean()


def test_device_arrays_are_fetched_explicitly():
    batch = {"x": jnp.arange(3), "y": np.arange(3)}
    with jax.transfer_guard("disallow"):
        padded, _ = pad_rows(batch, 4)
    assert isinstance(padded["x"], np.ndarray) and padded["x"].tolist() == [0, 1, 2, 2]


def test_full_batch_is_returned_as_it_is():
    batch = {"x": jnp.arange(3)}
    padded, mask = pad_rows(batch, 3)
    assert padded is batch and mask.all()


def test_row_mask_of_none_and_of_all():
    assert row_mask(0, 2).tolist() == [False, False]
    assert row_mask(2, 2).tolist() == [True, True]


def test_more_rows_than_compiled_names_both_numbers():
    with pytest.raises(BatchError, match="batch with 5 rows, expected at most 4"):
        pad_rows({"x": np.zeros(5)}, 4)


def test_empty_batch_cannot_be_padded():
    with pytest.raises(BatchError, match="0 rows"):
        pad_rows({"x": np.zeros((0, 2))}, 4)
