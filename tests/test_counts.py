"""Is a number of steps, epochs or rows told from what is none?"""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from xtrainer.counts import MAX_COUNT, MAX_SEED, as_int, wanted_count

INTS = (np.int8, np.uint8, np.int32, np.int64, np.uint64)


@pytest.mark.parametrize("kind", INTS)
def test_a_whole_number_of_numpy_becomes_one_of_python(kind: Any) -> None:
    assert type(as_int(kind(7))) is int and as_int(kind(7)) == 7
    assert wanted_count(kind(7)) is None


@pytest.mark.parametrize(
    "value",
    [True, False, np.True_, 1.0, np.float32(1), "1", None, 1j, b"1", np.array(3), [3],
     jnp.int32(3), float("nan")],
)  # fmt: skip
def test_what_is_no_number_of_steps_is_told(value: Any) -> None:
    assert wanted_count(value) == "a whole number >= 0"
    assert as_int(value) is value


@pytest.mark.parametrize(
    ("value", "least", "most", "wanted"),
    [
        (-1, 0, MAX_COUNT, "a whole number >= 0"),
        (np.int64(-1), 0, MAX_COUNT, "a whole number >= 0"),
        (0, 1, MAX_COUNT, "a whole number >= 1"),
        (0, 0, MAX_COUNT, None),
        (2**31 - 1, 0, MAX_COUNT, None),
        (2**31, 0, MAX_COUNT, "a whole number <= 2147483647"),
        (np.uint64(2**63), 0, MAX_COUNT, "a whole number <= 2147483647"),
        (10**100, 0, MAX_COUNT, "a whole number <= 2147483647"),
        (2**32 - 1, 0, MAX_SEED, None),
        (2**32, 0, MAX_SEED, "a whole number <= 4294967295"),
    ],
)
def test_the_range_is_kept(value: Any, least: int, most: int, wanted: str | None) -> None:
    assert wanted_count(value, least, most) == wanted
