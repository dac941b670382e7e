"""A state as the list of its arrays: nothing is lost, and calls with it give the same."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_step_programs import Parts, parts

from xtrainer.errors import StepError
from xtrainer.step.flat import Flat, Form, whole


def example(impl: str = "threefry2x32") -> Any:
    """Returns a tree with keys of random numbers, one alone and several."""
    key = jax.random.key(3, impl=impl)
    return {"a": jnp.arange(3.0), "key": key, "keys": jax.random.split(key, 4), "none": None}


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_a_tree_comes_back_as_it_was(impl: str) -> None:
    tree = example(impl)
    form = Form(tree)
    leaves = form.flatten(tree)
    assert all(not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) for x in leaves)
    back = whole(Flat(form, leaves))
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    np.testing.assert_array_equal(back["a"], tree["a"])
    for name in ("key", "keys"):
        assert back[name].dtype == tree[name].dtype
        np.testing.assert_array_equal(
            jax.random.key_data(back[name]), jax.random.key_data(tree[name])
        )


def test_shapes_are_flattened_as_arrays_are() -> None:
    tree = example()
    specs = jax.eval_shape(lambda: tree)
    arrays, shapes = Form(tree).flatten(tree), Form(specs).flatten(specs)
    assert [(x.shape, x.dtype) for x in arrays] == [(x.shape, x.dtype) for x in shapes]


def test_another_structure_is_refused() -> None:
    with pytest.raises(ValueError, match="expected"):
        Form({"a": 1}).flatten({"b": 1})


@pytest.fixture(scope="module")
def made() -> Parts:
    return parts()


def test_flat_steps_give_what_whole_ones_do(made: Parts) -> None:
    executor, batch = made.executor, made.batch()
    state, window = made.state(), executor.new_window()
    flat, flat_window = executor.flatten(made.state()), executor.new_window()
    for _ in range(3):
        state, window, report = executor(state, batch, window)
        flat, flat_window, flat_report = executor(flat, batch, flat_window)
        assert type(flat) is Flat and type(flat_window) is Flat
        np.testing.assert_array_equal(report, flat_report)
    assert len(executor.programs) == 1
    for one, other in zip(
        jax.tree.leaves((state.params, state.opt_state, window)),
        jax.tree.leaves((whole(flat).params, whole(flat).opt_state, whole(flat_window))),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    assert whole(flat).rng.dtype == state.rng.dtype


def test_a_flat_state_is_donated(made: Parts) -> None:
    executor = made.executor
    flat = executor.flatten(made.state())
    executor(flat, made.batch(), executor.new_window())
    assert all(leaf.is_deleted() for leaf in flat.leaves)
    with pytest.raises(StepError, match="donated to an earlier step"):
        executor(flat, made.batch(), executor.new_window())


def test_new_windows_share_no_memory(made: Parts) -> None:
    windows = [made.executor.new_window() for _ in range(20)]
    places = {window.packed.unsafe_buffer_pointer() for window in windows}
    assert len(places) == 20
    for window in windows:
        np.testing.assert_array_equal(window.packed, windows[0].packed)
