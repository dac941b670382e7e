"""Is a batch copied where its maker may write to it again, and only there?"""

import gc
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import xtrainer as xt
from xtrainer.data import own

LARGE = 2**16
"""Elements of an array that is worth looking at."""


def reused_buffer() -> Iterator[Any]:
    buffer = np.zeros(LARGE)
    while True:
        yield {"x": buffer}


def reused_batch() -> Iterator[Any]:
    batch = {"x": np.zeros(LARGE)}
    while True:
        yield batch


def reused_inner() -> Iterator[Any]:
    inner = [np.zeros(LARGE)]
    while True:
        yield {"x": inner}


def kept_batches() -> Iterator[Any]:
    batches = [(np.zeros(LARGE), np.zeros(3))] * 3
    yield from batches


def views() -> Iterator[Any]:
    data = np.zeros((4, LARGE))
    yield from ({"x": row} for row in (data[i] for i in range(4)))


class Holder:
    """A loader whose object keeps the batch it gave."""

    def __init__(self) -> None:
        self.last: Any = None

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        self.last = xt.Batch(inputs=np.zeros(LARGE))
        return self.last


def fresh_dicts() -> Iterator[Any]:
    while True:
        yield {"x": np.zeros(LARGE), "n": 3, "none": None}


def fresh_objects() -> Iterator[Any]:
    while True:
        yield xt.Batch(inputs=np.zeros(LARGE), targets=(np.zeros(3), [np.zeros(3)]))


def fresh_arrays() -> Iterator[Any]:
    while True:
        yield np.zeros(LARGE)


def shuffled() -> Iterator[Any]:
    data = {"x": np.zeros((8, LARGE)), "y": np.zeros(8)}
    return iter(xt.ArrayLoader(data, batch_size=2, shuffle=True))


def first_array(batch: Any) -> Any:
    return next(leaf for leaf in jax.tree.leaves(batch) if hasattr(leaf, "ctypes"))


@pytest.mark.parametrize("make", [reused_buffer, reused_batch, reused_inner, kept_batches, views])
def test_what_the_loader_can_still_write_to_is_copied(make: Callable[[], Iterator[Any]]) -> None:
    loader = make()
    box = [next(loader)]
    address = first_array(box[0]).ctypes.data
    kept = own(box)
    assert first_array(kept).ctypes.data != address


def test_a_batch_that_the_loader_keeps_is_copied() -> None:
    loader = Holder()
    kept = own([next(loader)])
    assert not np.shares_memory(kept.inputs, loader.last.inputs)


@pytest.mark.parametrize("make", [fresh_dicts, fresh_objects, fresh_arrays, shuffled])
def test_what_belongs_to_nobody_else_is_not_copied(make: Callable[[], Iterator[Any]]) -> None:
    loader = make()
    box = [next(loader)]
    address = first_array(box[0]).ctypes.data
    gc.disable()
    try:
        assert first_array(own(box)).ctypes.data == address
    finally:
        gc.enable()


def test_a_copy_can_be_shared_by_a_cpu_device() -> None:
    data = np.arange(LARGE + 1, dtype=np.int32)[1:].reshape(2, -1)
    kept = own([data])
    np.testing.assert_array_equal(kept, data)
    assert kept.ctypes.data % 64 == 0 and kept.dtype == data.dtype
    placed = jax.device_put(kept, jax.devices("cpu")[0])
    assert placed.unsafe_buffer_pointer() == kept.ctypes.data


def test_small_arrays_are_copied_and_what_cannot_change_is_not() -> None:
    device, scalar = jnp.ones(2), np.float32(1)
    batch = {"numpy": np.ones(2), "device": device, "scalar": scalar, "none": None, "int": 3}
    copied = own([batch])
    assert copied["device"] is device and copied["scalar"] is scalar and copied["int"] == 3
    assert not np.shares_memory(copied["numpy"], batch["numpy"])


@pytest.mark.parametrize("size", [2, LARGE])
def test_what_only_looks_like_an_array_becomes_one(size: int) -> None:
    class Tensor:
        def __init__(self) -> None:
            self.data = np.ones(size)
            self.nbytes = self.data.nbytes

        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            return self.data

    tensor = Tensor()
    copied = own([tensor])
    assert isinstance(copied, np.ndarray) and not np.shares_memory(copied, tensor.data)
