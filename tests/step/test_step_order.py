"""Small computations in line: the same values, whatever is put into one array."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xtrainer.metrics import global_norm
from xtrainer.step import order
from xtrainer.step.order import Line

SHAPES = [(), (1,), (3, 5), (0, 2), (64, 64), (65, 64), (2, 2**14), (300, 200)]
"""Nothing, a number, tiny, and large arrays, on both sides of every limit."""


def tree(shapes: list[tuple[int, ...]], dtype: Any = np.float32, seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def norm(leaves: Any, checked: Any = None, wanted: bool = True, twice: bool = False) -> float:
    """Returns the norm from a compiled function, where asked for behind another one."""

    def compute(leaves: Any, checked: Any) -> jax.Array:
        line = Line(wanted)
        if twice:
            line.norm(leaves)
        return line.norm(leaves, checked)

    return float(jax.jit(compute)(leaves, checked))


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_a_norm_is_that_of_numpy(wanted: bool, dtype: Any, twice: bool) -> None:
    leaves = tree(SHAPES * 3, dtype)
    flat = np.concatenate([np.asarray(x, np.float64).ravel() for x in leaves])
    found = norm(leaves, leaves, wanted, twice)
    np.testing.assert_allclose(found, np.linalg.norm(flat), rtol=1e-5)


def test_more_leaves_than_one_array_takes_are_all_counted() -> None:
    leaves = [jnp.full((2,), 1.0)] * (2 * order._GROUP + 1)
    assert norm(leaves) == pytest.approx(np.sqrt(2 * len(leaves)))


def test_dtypes_are_kept_apart() -> None:
    leaves = [*tree([(4,)] * 3), *tree([(4,)] * 3, jnp.bfloat16), *tree([(4,)], np.complex64)]
    np.testing.assert_allclose(norm(leaves), float(global_norm(leaves)), rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, len(SHAPES) - 1),
    st.sampled_from([np.nan, np.inf, -np.inf]),
    st.booleans(),
    st.booleans(),
)
def test_a_number_that_is_not_finite_is_found_in_any_leaf(
    index: int, value: float, in_checked: bool, wanted: bool
) -> None:
    leaves, checked = tree(SHAPES), tree(SHAPES, seed=1)
    chosen = checked if in_checked else leaves
    if chosen[index].size == 0:
        return
    spoiled = np.array(chosen[index])
    spoiled[tuple(n - 1 for n in spoiled.shape)] = value
    chosen[index] = jnp.asarray(spoiled)
    assert not np.isfinite(norm(leaves, checked, wanted))


@pytest.mark.parametrize("accept", [False, True])
def test_a_selection_takes_one_side_whole_nan_or_not(accept: bool) -> None:
    old = tree(SHAPES)
    new = [jnp.full_like(x, np.nan) for x in old] if not accept else tree(SHAPES, seed=1)

    def select(accept: jax.Array, new: Any, old: Any) -> Any:
        line = Line(True)
        line.norm(old)
        return line.select(accept, new, old)

    chosen = jax.jit(select)(jnp.asarray(accept), new, old)
    for found, expected in zip(chosen, new if accept else old, strict=True):
        np.testing.assert_array_equal(found, expected)
